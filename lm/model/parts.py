"""The parts of a transformer that are not attention: parameters, norms, the feed-forward, dropout.

A part is a frozen value that is called with the flax module it lives in and there declares its parameters, each on one
line: name, shape, logical axes, initializer. Norms are computed in float32; parameters are float32 always.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import LazyRng
from jax.ad_checkpoint import checkpoint_name

from lm.bounds import Count, Finite, NonNegative, Sentinel, check
from lm.model.adapted import Adapted, Weight
from lm.model.compute import Compute
from lm.model.native import Streamed
from lm.model.products import linear, linears
from lm.model.taps import tap
from lm.sharding.rules import check_axes
from lm.sharding.tracing import constrain
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
    """A float32 parameter of `module`, born with its logical axes; an adapted matrix as an array.

    Raises ValueError for an adapted one with dropout, which is of what a product reads."""
    value = matrix(module, name, shape, axes, init)
    if not isinstance(value, Adapted):
        return value
    if value.key is not None:
        raise ValueError(
            f"{name} is read otherwise than by one product, so that its adapter has no dropout: set trains.dropout=0, "
            "or leave it out of trains.where"
        )
    return value.merged


def matrix(module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str | None], init: Initializer) -> Weight:
    """A parameter that `linear` alone reads: an array, adapted, or streamed. Its first value follows from the module's
    key, its name and its shape alone: whatever else the module has, it starts alike."""
    check_axes(axes, shape)
    kept: Any = module.get_variable("params", name)
    if isinstance(kept, Streamed | Adapted):  # of other layouts, which flax would refuse
        return cast(Weight, kept)

    def draw(key: jax.Array, *args: Any) -> jax.Array:
        if module.is_initializing():  # flax's own key counts the parameters that came before
            key = LazyRng.create(module.scope.rngs["params"], name).as_jax_rng()  # type: ignore[union-attr]
        return init(key, *args)

    born = nn.with_logical_partitioning(draw, tuple(axes))
    value = cast(Weight, module.param(name, born, tuple(shape), jnp.float32))
    # of what would follow from first values nothing is read, and without them it is traced once for all layers
    return jnp.zeros(shape, jnp.float32) if module.is_initializing() else value


@dataclass(frozen=True)
class Norm:
    """No normalisation; the base class and contract of all."""

    def __call__(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        """x [..., D] normalised, with the parameters `name` of `module`."""
        return x


@dataclass(frozen=True)
class LayerNorm(Norm):
    """Zero mean and unit variance over D, then a learned scale and, with `bias`, a shift (1607.06450)."""

    eps: NonNegative = 1e-5
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

    eps: NonNegative = 1e-6
    plus_one: bool = False

    def __call__(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        scale = param(module, f"{name}_scale", (x.shape[-1],), ("norm",), zeros if self.plus_one else ones)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps) * (scale + float(self.plus_one))
        return y.astype(x.dtype)


@dataclass(frozen=True)
class UnscaledRMSNorm(Norm):
    """Unit mean square over D, and nothing learned."""

    eps: NonNegative = 1e-6

    def __call__(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)).astype(x.dtype)


@dataclass(frozen=True)
class JointRMSNorm(RMSNorm):
    """RMSNorm over all numbers of a token, x [B, T, ...]: of queries and keys over all heads at once, with a scale for
    each number (OLMo 2, 2501.00656, section 2)."""

    def __call__(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        return super().__call__(module, name, x.reshape(*x.shape[:2], -1)).reshape(x.shape)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),  # 1606.08415; jax.nn's erfc takes twice as long
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),  # its tanh approximation, as GPT-2 has it
    "silu": jax.nn.silu,  # 1702.03118
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # the gelu's sigmoid approximation, also in 1606.08415
    "tanh": jnp.tanh,  # BERT's pooler (1810.04805)
}


@dataclass(frozen=True)
class FeedForward:
    """Two products with an activation between, or three when `gated` (2002.05202): (act(x Wg) * (x Wu + offset)) Wd.

    `mlp` is the inner width F; with `clamp` above 0 the gate is kept below it and up within plus and minus it."""

    choices: ClassVar[Mapping[str, Any]] = {"activation": ACTIVATIONS}

    mlp: Count
    activation: str = "gelu"
    gated: bool = False
    bias: bool = False
    clamp: Annotated[NonNegative, Sentinel(0, "none")] = 0.0
    offset: Finite = 0.0

    def __post_init__(self) -> None:
        check(self, "ffn")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}: {suggest(self.activation, ACTIVATIONS)}")

    def __call__(
        self, module: nn.Module, x: jax.Array, compute: Compute, depth: int, is_token: jax.Array | None = None
    ) -> jax.Array:
        """x [B, T, D] -> [B, T, D], token by token.

        Args:
          module: the layer, in which parameters are declared.
          x: [B, T, D].
          compute: how it is computed.
          depth: layers that share the residual stream's variance (GPT-2's initial values).
          is_token: [B, T], true for tokens and false for padding, which no statistic counts; None: all are tokens."""
        D, F = x.shape[-1], self.mlp

        weights = [matrix(module, name, (D, F), ("embed", "mlp"), fan_in(D)) for name in self.inputs]
        parts = linears(x, weights, compute)
        if self.bias:
            parts = [add_bias(module, f"{n}_bias", y, ("mlp",)) for n, y in zip(self.inputs, parts, strict=True)]
        parts = [checkpoint_name(constrain(y, "batch", "seq", "mlp"), "mlp_in") for y in parts]
        hidden = tap(module, "mlp_inner", constrain(self.inner(*parts), "batch", "seq", "mlp"))
        down = matrix(module, "down", (F, D), ("mlp", "embed"), fan_in(F, (2 * depth) ** -0.5))
        y = linear(hidden, down, compute, back=True)
        return add_bias(module, "down_bias", y, ("norm",)) if self.bias else y

    def sizes(self) -> dict[str, tuple[str, int]]:
        """The sizes that a mesh may split: field -> (logical axis, size)."""
        return {"mlp": ("mlp", self.mlp)}

    @property
    def active_mlp(self) -> int:
        """The inner width that a token takes: of experts that of those chosen, and of what all take."""
        return self.mlp

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
