"""Odds ratio preference optimization (ORPO, 2403.07691): supervised fine-tuning and preferences at once."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Positive, check
from lm.tune.preferences import Compared, Preference, chosen_and_rejected
from lm.tune.sequences import Sequences


def log_odds_ratio(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """log [odds(chosen) / odds(rejected)], odds(p) = p / (1 - p), of mean log-probabilities (equations 4 and 5)."""
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) of negative x, exact to rounding (Maechler 2012)."""
    x = jnp.minimum(x, -jnp.finfo(x.dtype).tiny)
    near = x > -np.log(2)
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1))), jnp.log1p(-jnp.exp(jnp.where(near, -1, x))))


@dataclass(frozen=True)
class ORPO(Preference):
    """Learn the chosen sides by maximum likelihood, and that their odds are larger than those of the rejected ones;
    there is no reference.

    - `beta`: the weight of the odds ratio's loss (the paper's lambda)."""

    beta: Positive = 0.1

    def __post_init__(self) -> None:
        check(self, "method")

    @property
    def nll_weight(self) -> float:
        return 1.0

    def compare(
        self, policy: Sequences, reference: Sequences | None, values: jax.Array, weights: jax.Array
    ) -> Compared:
        chosen, rejected = jnp.moveaxis(policy.means, -1, 0)
        loss = -self.beta * jax.nn.log_sigmoid(log_odds_ratio(chosen, rejected))
        return Compared(loss, chosen_and_rejected(self.beta * chosen, self.beta * rejected))
