"""Gated DeltaNet (2412.06464): linear attention by the gated delta rule, and the state that it keeps while decoding.

Letters besides the model's: N value heads share K key heads, H and Hv are the sizes of a key and of a value, W the
tokens that a convolution spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.bounds import Count, check
from lm.model.compute import Compute
from lm.model.delta_rule import Tokens, chunked, recurrent
from lm.model.mixer import LayerInputs, Mixer
from lm.model.parts import Norm, RMSNorm, fan_in, matrix, param
from lm.model.positions import Positions
from lm.model.products import linear, linears
from lm.model.scoring import Mask
from lm.model.taps import tap
from lm.sharding.tracing import constrain

QKV = ("query", "key", "value")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeltaCache:
    """What one layer keeps of the tokens so far: the `state` [B, N, H, Hv], float32, and the last W - 1 inputs of the
    convolutions of queries, keys and values, [B, W - 1, heads, size] each."""

    state: jax.Array
    inputs: tuple[jax.Array, ...]

    def behind(self, offset: jax.Array | int) -> "DeltaCache":
        """This cache, empty in rows that have no tokens yet."""
        if isinstance(offset, int):
            return self
        clear = lambda a: jnp.where(offset.reshape(-1, *[1] * (a.ndim - 1)) > 0, a, 0)  # noqa: E731
        return cast(DeltaCache, jax.tree.map(clear, self))


class _Rows(NamedTuple):
    """How the tokens [B, T] lie in their rows: of each its `document`, counted from 0; which are no padding (None: all
    are), and how many."""

    document: jax.Array
    real: jax.Array | None
    length: jax.Array

    @classmethod
    def of(cls, mask: Mask, B: int, T: int) -> "_Rows":
        segments = mask.query_segments
        if segments is None:
            return cls(jnp.zeros((B, T), jnp.int32), None, jnp.full((B,), T))
        real = segments > 0
        begins = jnp.pad((segments[:, 1:] != segments[:, :-1]) & real[:, 1:], [(0, 0), (1, 0)])
        return cls(jnp.cumsum(begins, axis=1, dtype=jnp.int32), real, real.sum(1))


def _convolve(x: jax.Array, before: jax.Array, kernel: jax.Array, rows: _Rows) -> tuple[jax.Array, jax.Array]:
    """silu of the causal depthwise convolution of x [B, T, heads, size], `before` it the W - 1 inputs of a cache, with
    the kernel [W, heads, size], whose last is a token's own, within each document: in float32; and the last inputs."""
    T, W = x.shape[1], len(kernel)
    x = jnp.concatenate([before.astype(x.dtype), x], axis=1)
    document = jnp.pad(rows.document, [(0, 0), (W - 1, 0)])
    y = jnp.zeros((), jnp.float32)
    for i, weight in enumerate(kernel):
        part = x[:, i : i + T] * weight
        same = document[:, i : i + T] == rows.document
        y = y + (part if rows.real is None else jnp.where(same[..., None, None], part, 0))
    last = rows.length[:, None] + jnp.arange(W - 1)
    return jax.nn.silu(y), jnp.take_along_axis(x, last[..., None, None], axis=1)


def _unit(x: jax.Array) -> jax.Array:
    """Vectors x [..., H] of length 1."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def _log_rate(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def _time_step(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """The inverse softplus of steps from 0.001 to 0.1, uniform in their logarithm."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, jnp.log(1e-3), jnp.log(0.1)))
    return step + jnp.log(-jnp.expm1(-step))


@dataclass(frozen=True)
class GatedDeltaNet(Mixer):
    """The gated delta rule in `value_heads` heads, keys of size `key_dim` and values of size `value_dim`, where each of
    `key_heads` heads of queries and keys serves value_heads / key_heads of them. Queries, keys and values pass a causal
    depthwise convolution over `conv_size` tokens and silu; what is read is normalised by `norm` and multiplied by the
    silu of a gate (2412.06464, section 3.4; Qwen3-Next).

    Several tokens are computed by chunks of `chunk`, a power of two, which changes the rounding alone. Positions are
    not used: a state knows the order. A_log and dt_bias start as in Mamba-2 (2405.21060): with time constants from
    under one token to a thousand."""

    key_heads: Count
    value_heads: Count
    key_dim: Count
    value_dim: Count
    conv_size: Count = 4
    chunk: Count = 64
    norm: Norm = RMSNorm()

    def __post_init__(self) -> None:
        check(self, "GatedDeltaNet")
        if self.value_heads % self.key_heads:
            near = -(-self.value_heads // self.key_heads) * self.key_heads
            raise ValueError(
                f"value_heads={self.value_heads} is not a multiple of key_heads={self.key_heads}: try {near}"
            )
        if self.chunk & (self.chunk - 1):
            raise ValueError(f"chunk={self.chunk}: expected a power of two, as {1 << (self.chunk.bit_length() - 1)}")

    def __call__(
        self,
        module: nn.Module,
        x: jax.Array,
        inputs: LayerInputs,
        positions: Positions,
        cache: DeltaCache | None,
        compute: Compute,
        depth: int,
    ) -> tuple[jax.Array, DeltaCache | None]:
        (B, T, D), mask = x.shape, inputs.mask
        if mask.key_blocks is not None or mask.ahead is not None:
            raise ValueError("GatedDeltaNet reads a prefix or an image in order too: take data that has none")
        assert mask.causal and not mask.window and not mask.zigzag, mask  # lm/model/config.py, lm/legal.py
        old = cache or self.empty_cache(B, 0, 0, 0, compute.dtype)
        y = self._project(module, x, compute)
        # the backward pass keeps the projections, and neither states nor matrices of chunks
        mix = jax.checkpoint(self._mix)
        read, new = mix(y, self._vectors(module), _Rows.of(mask, B, T), old.behind(mask.offset))
        read = constrain(read.astype(compute.dtype), "batch", "seq", "heads", "head_dim")
        read = tap(module, "attn_head", checkpoint_name(read, "attention"))
        gated = self.norm(module, "value_norm", read) * jax.nn.silu(y["out_gate"].astype(jnp.float32))
        inner = self.value_heads * self.value_dim
        shape, axes = (self.value_heads, self.value_dim, D), ("heads", "head_dim", "embed")
        out = matrix(module, "out", shape, axes, fan_in(inner, (2 * depth) ** -0.5))
        out = linear(gated.astype(compute.dtype), out, compute, contract=2, back=True)
        return checkpoint_name(out, "out"), None if cache is None else new

    def _project(self, module: nn.Module, x: jax.Array, compute: Compute) -> dict[str, jax.Array]:
        """x [B, T, D] times the weights: [B, T, heads, size] each, and [B, T, N] of rates. `out_gate` is of what is
        read."""
        shapes = {name: self._shape(name) for name in ("query", "key", "value", "out_gate", "beta", "decay")}
        D = x.shape[-1]
        weights = [matrix(module, name, (D, *n), ("embed", *axes), fan_in(D)) for name, (n, axes) in shapes.items()]
        ys = {}
        for (name, (_, axes)), y in zip(shapes.items(), linears(x, weights, compute), strict=True):
            kept_as = name if name in ("query", "key") else "value"
            ys[name] = checkpoint_name(constrain(y, "batch", "seq", *axes), kept_as)
        return ys

    def _shape(self, name: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The sizes and logical axes of a token's projection `name`."""
        if name in ("beta", "decay"):
            return (self.value_heads,), ("heads",)
        if name in ("query", "key"):
            return (self.key_heads, self.key_dim), ("kv_heads", "head_dim")
        return (self.value_heads, self.value_dim), ("heads", "head_dim")

    def _vectors(self, module: nn.Module) -> dict[str, jax.Array]:
        """The parameters that no product reads."""
        N, W = (self.value_heads,), self.conv_size
        kernels = {f"{name}_conv": self._shape(name) for name in QKV}
        return {
            name: param(module, name, (W, *shape), ("conv", *axes), fan_in(W))
            for name, (shape, axes) in kernels.items()
        } | dict(
            A_log=param(module, "A_log", N, ("heads",), _log_rate),
            dt_bias=param(module, "dt_bias", N, ("heads",), _time_step),
        )

    def _mix(
        self, y: dict[str, jax.Array], vectors: dict[str, jax.Array], rows: _Rows, cache: DeltaCache
    ) -> tuple[jax.Array, DeltaCache]:
        """What the queries read, float32 [B, T, N, Hv], of projections y and `vectors`, and the cache with T tokens."""
        both = [_convolve(y[n], old, vectors[f"{n}_conv"], rows) for n, old in zip(QKV, cache.inputs, strict=True)]
        q, k, v = (constrain(a, "batch", "seq", *self._shape(n)[1]) for n, (a, _) in zip(QKV, both, strict=True))
        q, k = (jnp.repeat(_unit(a), self.value_heads // self.key_heads, axis=2) for a in (q, k))
        beta, step = jax.nn.sigmoid(y["beta"].astype(jnp.float32)), y["decay"].astype(jnp.float32) + vectors["dt_bias"]
        g = -jnp.exp(vectors["A_log"]) * jax.nn.softplus(step)
        if rows.real is not None:  # padding changes no state
            g, beta = (jnp.where(rows.real[..., None], a, 0) for a in (g, beta))
        q, k, v, g, beta = (jnp.moveaxis(a, 1, 2) for a in (q * self.key_dim**-0.5, k, v, g, beta))
        tokens = Tokens(q, k, v, g, beta, rows.document[:, None])
        rule = recurrent if rows.document.shape[1] == 1 else partial(chunked, chunk=self.chunk)
        read, state = rule(tokens, cache.state)
        return jnp.moveaxis(read, 1, 2), DeltaCache(state, tuple(last for _, last in both))

    # ---------------------------------------------------------------- what others ask

    def empty_cache(self, rows: int, length: int, encoder_length: int, window: int, dtype: Any) -> DeltaCache:
        state = jnp.zeros((rows, self.value_heads, self.key_dim, self.value_dim), jnp.float32)
        inputs = (jnp.zeros((rows, self.conv_size - 1, *self._shape(name)[0]), dtype) for name in QKV)
        return DeltaCache(state, tuple(inputs))

    def flops(self, keys: float) -> float:
        """A token reads the state with its key, adds an outer product, and reads it with its query."""
        return 6.0 * self.value_heads * self.key_dim * self.value_dim

    def products(self, width: int) -> dict[str, float]:
        inner = self.value_heads * self.value_dim
        return {name: 2.0 * width * n for name, n in self._widths().items()} | dict(out=2.0 * width * inner)

    def activations(self, tensor: int = 1) -> dict[str, float]:
        query, value = max(self.key_heads // tensor, 1) * self.key_dim, self._widths()["value"] / tensor
        return dict(query=query, key=query, value=value, attention=self.value_heads * self.value_dim / tensor)

    def _widths(self) -> dict[str, int]:
        """What a token is projected to, by the names of `Compute.keep`: `value` has the gate and the rates too."""
        key = self.key_heads * self.key_dim
        return dict(query=key, key=key, value=2 * self.value_heads * (self.value_dim + 1))

    def sizes(self) -> dict[str, tuple[str, int]]:
        return {"value_heads": ("heads", self.value_heads), "key_heads": ("kv_heads", self.key_heads)}

    @property
    def recurrent(self) -> bool:
        return True
