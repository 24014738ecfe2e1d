"""Simple preference optimization (SimPO, 2405.14734): the mean log-probability of a side's tokens is its reward."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm.bounds import NonNegative, Positive, check
from lm.tune.preferences import Compared, Preference, chosen_and_rejected
from lm.tune.sequences import Sequences


def simpo_loss(chosen: jax.Array, rejected: jax.Array, beta: float, gamma: float) -> jax.Array:
    """-log sigmoid(beta (chosen - rejected) - gamma), of mean log-probabilities (equation 6)."""
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - gamma)


@dataclass(frozen=True)
class SimPO(Preference):
    """Learn preference pairs without a reference, by a reward that does not grow with a side's length.

    - `beta`: of the reward; `gamma`: by how much the chosen side's is to be larger.
    - `sft_weight`: of the negative log-likelihood of the chosen sides' tokens besides (0, as in the paper: none)."""

    beta: Positive = 2.0
    gamma: NonNegative = 1.0
    sft_weight: NonNegative = 0.0

    def __post_init__(self) -> None:
        check(self, "method")

    @property
    def nll_weight(self) -> float:
        return self.sft_weight

    def compare(
        self, policy: Sequences, reference: Sequences | None, values: jax.Array, weights: jax.Array
    ) -> Compared:
        chosen, rejected = jnp.moveaxis(policy.means, -1, 0)
        loss = simpo_loss(chosen, rejected, self.beta, self.gamma)
        return Compared(loss, chosen_and_rejected(self.beta * chosen, self.beta * rejected))
