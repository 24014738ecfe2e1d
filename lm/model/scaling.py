"""Rotary positions beyond the training length: how the angles are stretched.

A scaling gives the angle of one position for each pair of a head, and a factor for the length of what is turned.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Count, NonNegative, Positive, Sentinel


@dataclass(frozen=True)
class Scaling:
    """No stretching: pair i of H/2 turns by theta^(-2i/H) a position. The base class and contract of all. `by_call`: it
    reads the positions."""

    by_call: ClassVar[bool] = False

    def __call__(self, theta: float, head_dim: int, positions: jax.Array) -> tuple[jax.Array, float]:
        """The angles a position [H/2], or of each row [B, 1, 1, H/2], and the factor; `positions` [B, T] are those of
        this call."""
        return plain_angles(theta, head_dim), 1.0

    def check(self, head_dim: int) -> None:
        """Raise ValueError where it cannot stretch the angles of `head_dim` numbers."""


def plain_angles(theta: float | jax.Array, head_dim: int) -> jax.Array:
    """theta^(-2i/H) for the pairs i of a head: [H/2]."""
    return 1.0 / (theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim))


@dataclass(frozen=True)
class Linear(Scaling):
    """Positions divided by `factor` (2306.15595)."""

    factor: Positive

    def __call__(self, theta: float, head_dim: int, positions: jax.Array) -> tuple[jax.Array, float]:
        return plain_angles(theta, head_dim) / self.factor, 1.0


@dataclass(frozen=True)
class Dynamic(Scaling):
    """A larger theta once a call sees a position beyond `original_context`, growing with it (bloc97's dynamic NTK).
    Keys in a cache keep the angles of the call that wrote them."""

    by_call: ClassVar[bool] = True

    factor: Positive
    original_context: Count

    def __call__(self, theta: float, head_dim: int, positions: jax.Array) -> tuple[jax.Array, float]:
        length = jnp.maximum(positions.max() + 1, self.original_context).astype(jnp.float32)
        stretch = self.factor * length / self.original_context - (self.factor - 1)
        return plain_angles(theta * stretch ** (head_dim / (head_dim - 2)), head_dim), 1.0


@dataclass(frozen=True)
class Llama3(Scaling):
    """Wavelengths longer than `original_context` / `low_freq_factor` positions divided by `factor`, those shorter than
    `original_context` / `high_freq_factor` as they are, and between them a smooth passage (Llama 3.1, 2407.21783)."""

    factor: Positive
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_context: Count = 8192

    def __call__(self, theta: float, head_dim: int, positions: jax.Array) -> tuple[jax.Array, float]:
        angles = plain_angles(theta, head_dim)
        turns = self.original_context * angles / (2 * math.pi)  # within the original context
        keep = jnp.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return (1 - keep) * angles / self.factor + keep * angles, 1.0


@dataclass(frozen=True)
class YaRN(Scaling):
    """Pairs that rotate less than `beta_slow` times within `original_context` positions are slowed by `factor`, those
    that rotate more than `beta_fast` times are kept, and between them a ramp; queries and keys are multiplied by
    `attention_factor` (0: 0.1 ln(factor) + 1) (2309.00071). `truncate` rounds the ramp's ends to whole pairs."""

    factor: Positive
    original_context: Count
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    attention_factor: Annotated[NonNegative, Sentinel(0, "0.1 ln(factor) + 1")] = 0.0
    truncate: bool = True

    def __call__(self, theta: float, head_dim: int, positions: jax.Array) -> tuple[jax.Array, float]:
        angles = plain_angles(theta, head_dim)
        low, high = (self._pair(turns, theta, head_dim) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1).astype(np.float32)
        size = self.attention_factor or (0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0)
        return angles / self.factor * ramp + angles * (1 - ramp), size

    def _pair(self, turns: float, theta: float, head_dim: int) -> float:
        """The pair (a fraction of them too) that turns so many times within the original context."""
        return head_dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))


@dataclass(frozen=True)
class LongRoPE(Scaling):
    """Each pair's angle divided by a factor of its own, of `short_factor` in rows within `original_context` positions
    and of `long_factor` in longer ones; queries and keys are multiplied by `attention_factor` (2402.13753; Phi-3). Keys
    in a cache keep the angles of the call that wrote them."""

    by_call: ClassVar[bool] = True

    short_factor: tuple[Positive, ...]
    long_factor: tuple[Positive, ...]
    original_context: Count
    attention_factor: Positive = 1.0

    def __call__(self, theta: float, head_dim: int, positions: jax.Array) -> tuple[jax.Array, float]:
        longer = positions.max(-1)[:, None, None, None] >= self.original_context  # of a row: whatever is beside it
        short, long = (jnp.asarray(f, jnp.float32) for f in (self.short_factor, self.long_factor))
        return plain_angles(theta, head_dim) / jnp.where(longer, long, short), self.attention_factor

    def check(self, head_dim: int) -> None:
        for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if len(factors) != head_dim // 2:
                raise ValueError(
                    f"positions.scaling.{name} has {len(factors)} numbers for {head_dim // 2} pairs: expected one each"
                )
