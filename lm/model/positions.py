"""Where a token is: the seats that a positional encoding may take.

Every encoding has the same three: `embed` adds to the embedding [B, T, D] once, `rotate` turns queries and keys in each
layer, and `bias` adds to attention's logits, as a function of the distance from query to key alone. An encoding
overrides the seats it uses; the base class uses none (no positions: 2305.19466).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.bounds import Count, NonNegative, Positive, Probability
from lm.model.compute import Compute
from lm.model.parts import normal, param
from lm.model.products import look_up
from lm.model.scaling import Scaling


@dataclass(frozen=True)
class Positions:
    """No positional encoding; the base class and contract of all. `endless`: it says something of any position, below
    the model's context or not; `biased`: it has a bias; `by_call`: it depends on the last position of a call;
    `counts_padding`: padding on the left moves a text's positions, as transformers has it of most models."""

    endless: ClassVar[bool] = True
    biased: ClassVar[bool] = False
    counts_padding: ClassVar[bool] = True

    @property
    def by_call(self) -> bool:
        return False

    def embed(self, module: nn.Module, x: jax.Array, positions: jax.Array, context: int) -> jax.Array:
        """x [B, T, D] with whatever the encoding adds for positions [B, T] below `context`."""
        return x

    def table(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, ...]:
        """What `rotate` needs for positions [B, T], computed once and shared by the layers."""
        return ()

    def rotate(self, x: jax.Array, table: tuple[jax.Array, ...], compute: Compute) -> jax.Array:
        """Queries or keys x [B, T, N, H], rotated by `table`."""
        return x

    def bias(self, module: nn.Module, distances: jax.Array, heads: int, causal: bool) -> jax.Array | None:
        """What to add to the logits at `distances` [M], key less query in tokens: float32 [N, M], or None for nothing;
        of [B, M], [B, N, M].

        Called once a stack: the layers share it."""
        return None

    def layer_bias(
        self, module: nn.Module, shared: jax.Array | None, distances: jax.Array | None, heads: int, causal: bool
    ) -> jax.Array | None:
        """The bias of one layer, the `module`, of that which all share: as `bias` has it."""
        return shared

    def check(self, head_dim: int) -> None:
        """Raise ValueError where this encoding cannot serve heads of that size."""


@dataclass(frozen=True)
class Learned(Positions):
    """A trained vector for each position (GPT, BERT)."""

    init_scale: NonNegative = 0.02

    endless: ClassVar[bool] = False

    def embed(self, module: nn.Module, x: jax.Array, positions: jax.Array, context: int) -> jax.Array:
        table = param(module, "positions", (context, x.shape[-1]), (None, "embed"), normal(self.init_scale))
        return x + look_up(table, positions, x.dtype)


@dataclass(frozen=True)
class LearnedAfter(Learned):
    """Trained vectors of which the first `offset` are of no position: padding, which counts for none, has the last of
    them (RoBERTa, 1907.11692, whose padding is token 1)."""

    offset: Count = 2

    counts_padding: ClassVar[bool] = False

    def embed(self, module: nn.Module, x: jax.Array, positions: jax.Array, context: int) -> jax.Array:
        return super().embed(module, x, positions + self.offset, context + self.offset)


@dataclass(frozen=True)
class Sinusoidal(Positions):
    """Sines and cosines of geometrically spaced wavelengths (1706.03762, section 3.5), sines first, then cosines."""

    max_wavelength: Positive = 10000.0

    def embed(self, module: nn.Module, x: jax.Array, positions: jax.Array, context: int) -> jax.Array:
        half = x.shape[-1] // 2
        angles = positions[..., None] * self.max_wavelength ** (-jnp.arange(half, dtype=jnp.float32) / half)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return x + jnp.pad(waves, [(0, 0), (0, 0), (0, x.shape[-1] - 2 * half)]).astype(x.dtype)


@dataclass(frozen=True)
class Rotary(Positions):
    """Each pair (i, i + H/2) of a head is turned by an angle proportional to the position (2104.09864); `scaling`
    stretches the angles for contexts longer than the model was trained on."""

    theta: Positive = 10000.0
    scaling: Scaling = Scaling()

    @property
    def by_call(self) -> bool:
        return self.scaling.by_call

    def table(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, ...]:
        frequencies, size = self.scaling(self.theta, head_dim, positions)
        angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, H/2]
        return jnp.cos(angles) * size, jnp.sin(angles) * size

    def rotate(self, x: jax.Array, table: tuple[jax.Array, ...], compute: Compute) -> jax.Array:
        return apply_rotary(x, *table, compute)

    def check(self, head_dim: int) -> None:
        if head_dim % 2:
            raise ValueError(f"rotary positions turn pairs: attention.head_dim={head_dim} is odd, try {head_dim + 1}")
        self.scaling.check(head_dim)


@dataclass(frozen=True)
class PartialRotary(Rotary):
    """Rotary positions of the first `fraction` of each head's numbers, rounded down; the others stay as they are
    (GPT-J, GPT-NeoX, Phi)."""

    fraction: Probability = 0.5

    def turned(self, head_dim: int) -> int:
        """How many of a head's numbers are turned."""
        return int(head_dim * self.fraction)

    def table(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, ...]:
        return super().table(positions, self.turned(head_dim))

    def rotate(self, x: jax.Array, table: tuple[jax.Array, ...], compute: Compute) -> jax.Array:
        turned, kept = jnp.split(x, [2 * table[0].shape[-1]], axis=-1)
        return jnp.concatenate([super().rotate(turned, table, compute), kept], axis=-1)

    def check(self, head_dim: int) -> None:
        if not (turned := self.turned(head_dim)) or turned % 2:
            raise ValueError(
                f"rotary positions turn pairs: positions.fraction={self.fraction} of attention.head_dim={head_dim} is "
                f"{turned} numbers, try {max(2, turned + turned % 2) / head_dim:g}"
            )
        self.scaling.check(turned)


@dataclass(frozen=True)
class ProportionalRotary(Rotary):
    """Rotary positions of which the first `fraction` of pairs alone turns, as fast as in a head that turns whole; the
    others stay as they are (Gemma 4)."""

    fraction: Probability = 0.25

    def table(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, ...]:
        turned = jnp.arange(head_dim // 2) < int(self.fraction * head_dim // 2)
        cos, sin = super().table(positions, head_dim)
        return jnp.where(turned, cos, 1), jnp.where(turned, sin, 0)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def apply_rotary(x: jax.Array, cos: jax.Array, sin: jax.Array, compute: Compute) -> jax.Array:
    """Pairs (i, i + H/2) of x [B, T, N, H] rotated by angles of which cos and sin are [B, T, 1, H/2], in float32. The
    gradient is rotated back."""
    half = x.shape[-1] // 2
    if compute.backend == "tpu":  # its lanes exchange halves slowly; a product with a permutation does it, and exactly
        swap = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=-1)
        over = ((x.ndim - 1,), (0,)), ((), ())
        other = jax.lax.dot_general(x, swap, over, jax.lax.Precision.HIGHEST, jnp.float32)
        cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
        return (x.astype(jnp.float32) * cos + other * sin).astype(x.dtype)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _rotary_forward(x: jax.Array, cos: jax.Array, sin: jax.Array, compute: Compute) -> Any:
    return apply_rotary(x, cos, sin, compute), (cos, sin)


def _rotary_backward(compute: Compute, table: tuple[jax.Array, jax.Array], g: jax.Array) -> Any:
    cos, sin = table
    return apply_rotary(g, cos, -sin, compute), None, None


apply_rotary.defvjp(_rotary_forward, _rotary_backward)


@dataclass(frozen=True)
class Alibi(Positions):
    """Logits fall with the distance, by a slope of each head's own (2108.12409)."""

    biased: ClassVar[bool] = True

    def bias(self, module: nn.Module, distances: jax.Array, heads: int, causal: bool) -> jax.Array | None:
        return -jnp.asarray(slopes(heads))[:, None] * jnp.abs(distances).astype(jnp.float32)


def slopes(heads: int) -> np.ndarray:
    """ALiBi's slopes [N]: 2^(-8/n), 2^(-16/n), ... for n a power of two; else those of the power below, and every
    second one of the power above."""
    below = 2 ** int(math.log2(heads))
    ends = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    more = [2.0 ** (-8 * (2 * i + 1) / (2 * below)) for i in range(heads - below)]
    return np.array(ends + more, np.float32)


@dataclass(frozen=True)
class Relative(Positions):
    """A learned bias for each head and bucket of distances (T5: 1910.10683, section 2.1): half of the buckets for
    single distances, the others ever wider up to `max_distance`; where keys may come later than queries, half are for
    those."""

    buckets: Count = 32
    max_distance: Count = 128

    biased: ClassVar[bool] = True

    def bias(self, module: nn.Module, distances: jax.Array, heads: int, causal: bool) -> jax.Array | None:
        table = param(module, "relative", (self.buckets, heads), (None, "heads"), normal(1.0))
        side = self.buckets if causal else self.buckets // 2
        back = jnp.asarray(self._bucket_of(side))[jnp.clip(jnp.abs(distances), 0, self.max_distance)]
        ahead = jnp.where(distances > 0, 0 if causal else back + side, back)
        return jnp.moveaxis(table[ahead], -1, -2)

    def _bucket_of(self, side: int) -> np.ndarray:
        """The bucket of each distance from 0 to `max_distance`, of `side` buckets; in float32, as it was published."""
        exact = side // 2
        n = np.maximum(np.arange(self.max_distance + 1), 1).astype(np.float32)
        ratio = np.log(n / np.float32(exact)) / np.float32(math.log(self.max_distance / exact))
        wide = exact + (ratio * np.float32(side - exact)).astype(np.int32)
        return np.where(
            np.arange(self.max_distance + 1) < exact, np.arange(self.max_distance + 1), np.minimum(wide, side - 1)
        )


@dataclass(frozen=True)
class RelativeByLayer(Relative):
    """`Relative` with a table in every layer (umT5, 2304.09151)."""

    def bias(self, module: nn.Module, distances: jax.Array, heads: int, causal: bool) -> jax.Array | None:
        return None

    def layer_bias(
        self, module: nn.Module, shared: jax.Array | None, distances: jax.Array | None, heads: int, causal: bool
    ) -> jax.Array | None:
        assert distances is not None
        return super().bias(module, distances, heads, causal)
