"""What it costs a policy to leave its reference: a coefficient that is fixed, or adapts from step to step."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm.bounds import NonNegative, Positive


@dataclass(frozen=True)
class FixedKL:
    """What a nat of a token's log-ratio to the reference costs."""

    coefficient: NonNegative = 0.05

    def after(self, coefficient: jax.Array, kl: jax.Array, completions: jax.Array) -> jax.Array:
        """The coefficient after so many `completions` of this mean `kl`, in nats a completion."""
        return coefficient


@dataclass(frozen=True)
class AdaptiveKL(FixedKL):
    """A coefficient that draws the KL divergence of a completion to `target` nats (1909.08593, section 2.2): after n
    completions it is multiplied by 1 + e n / `horizon`, e = KL / target - 1 clipped to -0.2 .. 0.2."""

    coefficient: Positive = 0.15
    target: Positive = 6.0
    horizon: Positive = 10_000.0

    def after(self, coefficient: jax.Array, kl: jax.Array, completions: jax.Array) -> jax.Array:
        return coefficient * (1 + jnp.clip(kl / self.target - 1, -0.2, 0.2) * completions / self.horizon)
