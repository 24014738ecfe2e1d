"""Kahneman-Tversky optimization (KTO, 2402.01306): from completions that are good or not, without pairs.

The reward of a completion, beta times its log-ratio against the reference, is valued relative to a reference point: how
far the policy is from the reference altogether. That is estimated from mismatched completions, each prompt's with the
completion of another record, and held constant in gradients (section 4.2).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm.bounds import NonNegative, Positive, check
from lm.data.objective import Objective
from lm.data.preferences import LabelledCompletions
from lm.page.measure import Measure
from lm.tune.preferences import Compared, Preference
from lm.tune.sequences import Sequences


def reference_point(mismatched: jax.Array, weights: jax.Array) -> jax.Array:
    """z0: the mean of the log-ratios [B, P] of mismatched completions, by `weights`, and at least 0; constant in
    gradients."""
    mean = jnp.sum(weights * mismatched) / jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0))


def kto_loss(ratios: jax.Array, good: jax.Array, z0: jax.Array, beta: float) -> jax.Array:
    """1 - sigmoid(beta (r - z0)) of a good completion with log-ratio r, 1 - sigmoid(beta (z0 - r)) of another (equation
    8, with weights of 1); `good` is 1 or 0."""
    return 1 - jax.nn.sigmoid(beta * jnp.where(good > 0, ratios - z0, z0 - ratios))


@dataclass(frozen=True)
class KTO(Preference):
    """Learn completions that are labelled good or not, against the model that the run starts from.

    - `beta`: how dear it is to leave the reference.
    - `desirable_weight`, `undesirable_weight`: of the losses of good completions, and of others; the mean is over the
      number of completions, whatever these are.

    Dropout of the model is off, in the policy as in the reference; that of adapters is not."""

    reads_reference = True

    beta: Positive = 0.1
    desirable_weight: NonNegative = 1.0
    undesirable_weight: NonNegative = 1.0

    def __post_init__(self) -> None:
        check(self, "method")

    @property
    def objective(self) -> Objective:
        return LabelledCompletions()

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (*super().measures, Measure("kl", "KL estimate", "nats, the reference point"))

    def compare(
        self, policy: Sequences, reference: Sequences | None, values: jax.Array, weights: jax.Array
    ) -> Compared:
        assert reference
        ratios, mismatched = jnp.moveaxis(policy.logprobs - reference.logprobs, -1, 0)
        z0, good = reference_point(mismatched, weights), values > 0
        worth = jnp.where(good, self.desirable_weight, self.undesirable_weight)
        reward, of_good = self.beta * ratios, good.astype(jnp.float32)
        every = jnp.ones_like(reward)
        return Compared(
            worth * kto_loss(ratios, of_good, z0, self.beta),
            {
                "accuracy": (((ratios > z0) == good).astype(jnp.float32), every),
                "chosen_reward": (reward, of_good),
                "rejected_reward": (reward, 1 - of_good),
                "kl": (z0 * every, every),
            },
        )
