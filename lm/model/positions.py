"""Where a token is: the seats that a positional encoding may take.

Every encoding has the same three: `embed` adds to the embedding [B, T, D] once, `rotate` turns queries and keys in each
layer, and `bias` adds to attention's logits. An encoding overrides the seats it uses; the base class uses none (no
positions: 2305.19466).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.parts import normal, param


@dataclass(frozen=True)
class Positions:
    """No positional encoding; the base class and contract of all."""

    def embed(self, module: nn.Module, x: jax.Array, positions: jax.Array, context: int) -> jax.Array:
        """x [B, T, D] with whatever the encoding adds for positions [B, T] below `context`."""
        return x

    def table(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, ...]:
        """What `rotate` needs for positions [B, T], computed once and shared by the layers."""
        return ()

    def rotate(self, x: jax.Array, table: tuple[jax.Array, ...]) -> jax.Array:
        """Queries or keys x [B, T, N, H], turned by `table`."""
        return x

    def bias(self, queries: jax.Array, keys: jax.Array, heads: int) -> jax.Array | None:
        """What to add to the logits of queries at positions [B, T] and keys at [B, S]: [B or 1, N, T, S], or None."""
        return None

    def check(self, head_dim: int) -> None:
        """Raise ValueError where this encoding cannot serve heads of that size."""


@dataclass(frozen=True)
class Learned(Positions):
    """A trained vector for each position (GPT, BERT)."""

    init_scale: float = 0.02

    def embed(self, module: nn.Module, x: jax.Array, positions: jax.Array, context: int) -> jax.Array:
        table = param(module, "positions", (context, x.shape[-1]), (None, "embed"), normal(self.init_scale))
        return x + table[positions].astype(x.dtype)


@dataclass(frozen=True)
class Sinusoidal(Positions):
    """Sines and cosines of geometrically spaced wavelengths (1706.03762, section 3.5), sines first, then cosines."""

    longest: float = 10000.0

    def embed(self, module: nn.Module, x: jax.Array, positions: jax.Array, context: int) -> jax.Array:
        half = x.shape[-1] // 2
        angles = positions[..., None] * self.longest ** (-jnp.arange(half, dtype=jnp.float32) / half)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return x + jnp.pad(waves, [(0, 0), (0, 0), (0, x.shape[-1] - 2 * half)]).astype(x.dtype)


@dataclass(frozen=True)
class Rotary(Positions):
    """Each pair (i, i + H/2) of a head is turned by an angle proportional to the position (2104.09864)."""

    theta: float = 10000.0

    def table(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, ...]:
        half = head_dim // 2
        frequencies = self.theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, H/2]
        return jnp.cos(angles), jnp.sin(angles)

    def rotate(self, x: jax.Array, table: tuple[jax.Array, ...]) -> jax.Array:
        cos, sin = table
        a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)

    def check(self, head_dim: int) -> None:
        if head_dim % 2:
            raise ValueError(f"rotary positions turn pairs: attention.head_dim={head_dim} is odd, try {head_dim + 1}")
