"""The parts of a transformer that are not attention: parameters, matrix products, norms, feed-forward, residual wiring.

A part is a frozen value that is called with the flax module it lives in and there declares its parameters, each on one
line: name, shape, logical axes, initializer. Norms are computed in float32; parameters are float32 always.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import LazyRng
from jax.ad_checkpoint import checkpoint_name

from lm.model.compute import Compute
from lm.sharding import check_axes, constrain, platform
from lm.value import suggest

Initializer = Callable[..., jax.Array]
ones, zeros = nn.initializers.ones, nn.initializers.zeros


def normal(scale: float) -> Initializer:
    """A normal distribution of mean 0 and standard deviation `scale`."""
    return nn.initializers.normal(scale)


def fan_in(inputs: int, scale: float = 1.0) -> Initializer:
    """A normal distribution of standard deviation scale / sqrt(inputs): unit variance in, about unit variance out."""
    return nn.initializers.normal(scale / inputs**0.5)


def param(
    module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str | None], init: Initializer
) -> jax.Array:
    """A float32 parameter of `module`, born with its logical axes. Its first value follows from the module's key, its
    name and its shape alone: whatever else the module has, it starts alike."""
    check_axes(axes, shape)

    def draw(key: jax.Array, *args: Any) -> jax.Array:
        if module.is_initializing():  # flax's own key counts the parameters that came before
            key = LazyRng.create(module.scope.rngs["params"], name).as_jax_rng()  # type: ignore[union-attr]
        return init(key, *args)

    born = nn.with_logical_partitioning(draw, tuple(axes))
    return cast(jax.Array, module.param(name, born, tuple(shape), jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _flat_product(x: jax.Array, w: jax.Array, rows: int) -> jax.Array:
    """x [M, I] @ w [I, O] -> float32 [M, O], summed in float32 always; `rows` divides M (see the gradient)."""
    return jax.lax.dot(x, w, preferred_element_type=jnp.float32)


def _flat_forward(x: jax.Array, w: jax.Array, rows: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _flat_product(x, w, rows), (x, w)


def _flat_backward(rows: int, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    g = g.astype(w.dtype)
    dx = jax.lax.dot_general(g, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if x.dtype == jnp.bfloat16:
        # Contracting two axes at once makes XLA's CPU compiler lay the operands out for its fast kernel; contracting
        # the one long axis runs at half the speed in bfloat16, while in float32 it saves the copies (NOTES.md, products
        # on CPUs).
        x, g = x.reshape(rows, -1, x.shape[1]), g.reshape(rows, -1, g.shape[1])
    over = tuple(range(x.ndim - 1))
    dw = jax.lax.dot_general(x, g, ((over, over), ((), ())), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_flat_product.defvjp(_flat_forward, _flat_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(x: jax.Array, w: jax.Array, contract: int, dtype: str, gradients: str) -> jax.Array:
    """x [B, T, *in] @ w [*in, *out] in x's dtype, summed in float32 and given in `dtype`, so that a mesh's devices
    exchange no more than that; they exchange the gradient of w in `gradients`."""
    over = tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract))
    return _dot(x, narrowed(w, x.dtype), over, dtype)


def narrowed(w: jax.Array, dtype: Any) -> jax.Array:
    """Weights w in `dtype`, the products'. Where a loop over layers reads them in bfloat16 alone, a TPU's compiler would
    narrow those of all layers ahead of it and hold the copies all through: one more rounding, which does nothing, keeps
    it from that."""
    if platform() == "tpu" and jnp.dtype(dtype) == jnp.bfloat16:
        w = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    return w.astype(dtype)


def _dot(x: jax.Array, y: jax.Array, over: Any, dtype: Any) -> jax.Array:
    """The units of accelerators sum in float32 and round once; a CPU's would sum in `dtype`."""
    if platform() == "cpu":
        return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.float32).astype(dtype)
    return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.dtype(dtype))


def _product_forward(x: jax.Array, w: jax.Array, contract: int, dtype: str, gradients: str) -> tuple[jax.Array, Any]:
    return _product(x, w, contract, dtype, gradients), (x, w)


def _product_backward(
    contract: int, dtype: str, gradients: str, saved: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    g = g.astype(x.dtype)
    lead = x.ndim - contract
    outs = tuple(range(lead, g.ndim)), tuple(range(contract, w.ndim))
    rows = tuple(range(lead)), tuple(range(lead))
    return _dot(g, narrowed(w, x.dtype), outs, x.dtype), _dot(x, g, rows, gradients).astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)


def linear(x: jax.Array, w: jax.Array, compute: Compute, contract: int = 1) -> jax.Array:
    """x [B, T, *in] times w [*in, *out] -> [B, T, *out], over the last `contract` axes of x.

    Operands are `compute.matmul`, sums float32, the result `compute.dtype`."""
    inside, outside = w.shape[:contract], w.shape[contract:]
    x = x.astype(compute.matmul)
    if compute.flat == "yes":
        w = w.astype(compute.matmul)
        lead = x.shape[: x.ndim - contract]
        flat = _flat_product(x.reshape(-1, _size(inside)), w.reshape(_size(inside), _size(outside)), lead[0])
        return flat.reshape(*lead, *outside).astype(compute.dtype)
    return _product(x, w, contract, compute.dtype, compute.exchanged)


def linears(x: jax.Array, ws: Sequence[jax.Array], compute: Compute) -> list[jax.Array]:
    """`linear` of x [B, T, D] with each of several weights [D, *out].

    Where products are flat they are one product with the weights side by side: x is read once, and its gradient is
    summed inside the product instead of between several."""
    if compute.flat != "yes" or len(ws) == 1:
        return [linear(x, w, compute) for w in ws]
    wide = linear(x, jnp.concatenate([w.reshape(w.shape[0], -1) for w in ws], axis=1), compute)
    ends = list(accumulate(_size(w.shape[1:]) for w in ws))
    parts = jnp.split(wide, ends[:-1], axis=-1)
    return [part.reshape(*x.shape[:-1], *w.shape[1:]) for part, w in zip(parts, ws, strict=True)]


def look_up(table: jax.Array, ids: jax.Array, dtype: Any) -> jax.Array:
    """The rows [B, T, D] of a table [M, D] that ids [B, T] name."""
    x = constrain(table[ids].astype(dtype), "found_batch", "found_seq", "embed")
    x = constrain(x, "found_batch", "seq", "found_embed")
    return constrain(x, "batch", "seq", "act_embed")


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


@dataclass(frozen=True)
class Norm:
    """No normalisation; the base class and contract of all."""

    def __call__(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        """x [..., D] normalised, with the parameters `name` of `module`."""
        return x


@dataclass(frozen=True)
class LayerNorm(Norm):
    """Zero mean and unit variance over D, then a learned scale and, with `bias`, a shift (1607.06450)."""

    eps: float = 1e-5
    bias: bool = True

    def __call__(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        scale = param(module, f"{name}_scale", (x.shape[-1],), ("norm",), ones)
        y = x.astype(jnp.float32)
        mean = y.mean(-1, keepdims=True)
        variance = jnp.square(y - mean).mean(-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.eps) * scale
        if self.bias:
            y = y + param(module, f"{name}_bias", (x.shape[-1],), ("norm",), zeros)
        return y.astype(x.dtype)


@dataclass(frozen=True)
class RMSNorm(Norm):
    """Unit mean square over D, then a learned scale (1910.07467); with `plus_one` what is learned is the scale less 1,
    so that weight decay pulls it to 1 (Gemma)."""

    eps: float = 1e-6
    plus_one: bool = False

    def __call__(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        scale = param(module, f"{name}_scale", (x.shape[-1],), ("norm",), zeros if self.plus_one else ones)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps) * (scale + float(self.plus_one))
        return y.astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),  # 1606.08415; jax.nn's erfc takes twice as long
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),  # its tanh approximation, as GPT-2 has it
    "silu": jax.nn.silu,  # 1702.03118
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # the gelu's sigmoid approximation, also in 1606.08415
}


@dataclass(frozen=True)
class FeedForward:
    """Two products with an activation between, or three when `gated` (2002.05202): (act(x Wg) * (x Wu + offset)) Wd.

    `mlp` is the inner width F; with `clamp` above 0 the gate is kept below it and up within plus and minus it."""

    mlp: int
    activation: str = "gelu"
    gated: bool = False
    bias: bool = False
    clamp: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.mlp < 1:
            raise ValueError(f"ffn.mlp={self.mlp}: expected at least 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}: {suggest(self.activation, ACTIVATIONS)}")

    def __call__(self, module: nn.Module, x: jax.Array, compute: Compute, depth: int) -> jax.Array:
        """x [B, T, D] -> [B, T, D]; `depth` layers share the residual stream's variance (GPT-2's initial values)."""
        D, F = x.shape[-1], self.mlp

        weights = [param(module, name, (D, F), ("embed", "mlp"), fan_in(D)) for name in self.inputs]
        parts = linears(x, weights, compute)
        if self.bias:
            parts = [add_bias(module, f"{n}_bias", y, ("mlp",)) for n, y in zip(self.inputs, parts, strict=True)]
        parts = [checkpoint_name(constrain(y, "batch", "seq", "mlp"), "mlp_in") for y in parts]
        hidden = constrain(self.inner(*parts), "batch", "seq", "mlp")
        down = param(module, "down", (F, D), ("mlp", "embed"), fan_in(F, (2 * depth) ** -0.5))
        y = linear(hidden, down, compute)
        return add_bias(module, "down_bias", y, ("norm",)) if self.bias else y

    @property
    def inputs(self) -> tuple[str, ...]:
        """The products that read x."""
        return ("gate", "up") if self.gated else ("up",)

    def inner(self, *parts: jax.Array) -> jax.Array:
        """What the last product reads, from the results of `inputs`.

        The backward pass keeps the inputs alone and computes the rest again: arrays of width F are the largest of a
        layer, and reading one takes longer than an activation."""
        return jax.checkpoint(self._inner)(*parts)

    def _inner(self, *parts: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        if not self.gated:
            return act(parts[0])
        gate, up = parts
        if self.clamp:
            gate, up = jnp.minimum(gate, self.clamp), jnp.clip(up, -self.clamp, self.clamp)
        return act(gate) * (up + self.offset if self.offset else up)


def add_bias(module: nn.Module, name: str, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """x plus a learned vector over its last len(axes) axes."""
    return x + param(module, name, x.shape[x.ndim - len(axes) :], axes, zeros).astype(x.dtype)


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """x with each entry zeroed at `rate` and the rest scaled up, where the module was given a "dropout" key; else x."""
    if rate == 0 or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
