"""Group relative policy optimization (GRPO, 2402.03300) and its relatives, as values of one method.

Each prompt gets a group of completions; what one is worth beyond the group's mean is the advantage of all its tokens.
Its relatives are values of it (lm/tune/grpo_variants.py); losses are pure functions (lm/tune/policy_gradient.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Natural, NonNegative, Positive, Sentinel, whole
from lm.data.prompts import Rollouts
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.sharding.batches import on_host
from lm.train.logprobs import token_logprobs
from lm.train.loss import Metrics
from lm.train.method import Batch
from lm.tune import policy_gradient as pg
from lm.tune.on_policy import Drawn, OnPolicy, corrected
from lm.tune.on_policy_method import OnPolicyMethod

if TYPE_CHECKING:
    from lm.data.loader import Batches

CHOICES = {
    "aggregation": ("sequence", "token", "constant"),
    "scale": ("group", "batch", "none"),
    "baseline": ("mean", "leave_one_out"),
    "ratio": ("token", "sequence", "product"),
    "surrogate": ("clip", "cispo"),
    "kl": ("loss", "reward"),
}


@dataclass(frozen=True)
class GRPO(OnPolicyMethod):
    """Learn from what the completions in groups of `group` of one prompt are worth beside one another; fields of all
    such methods: lm/tune/on_policy_method.py.

    - `beta`: of the KL divergence from the model of the start, estimated by k3 in the `loss` (2402.03300, equation 4)
      or by k1 off the `reward`; 0: no reference is kept.
    - `baseline`: the group's `mean`, or that of the others (leave_one_out). `scale`: advantages are divided by the
      deviation of rewards in the `group`, in the `batch`, or by `none`.
    - `aggregation` of the tokens' losses: their mean in each `sequence` and the mean of these, the mean over each
      `token` of the batch, or their sum over a `constant`, rows times `max_new_tokens`.
    - `ratio` of new and old policy: of each `token`, of the `sequence` (the geometric mean), or the `product`.
      `surrogate`: PPO's, clipped to 1 - `clip_low` .. 1 + `clip_high`, or CISPO's, where the ratio, up to 1 +
      `clip_high`, weighs the log-probability.
    - `resample`: how often groups of equal rewards are replaced by those of other prompts (dynamic sampling); what is
      left has advantage 0. `drop_truncated`: whether completions without an end carry no loss.
    - `truncate_importance`: the most that a token weighs for being rarer in the sampler than in the policy; under top-k
      and top-p that is the kept mass."""

    choices = {**OnPolicyMethod.choices, **CHOICES}

    group: Annotated[int, whole(2)] = 8
    beta: Annotated[NonNegative, Sentinel(0, "no reference")] = 0.0
    kl: str = "loss"
    scale: str = "group"
    baseline: str = "mean"
    aggregation: str = "sequence"
    ratio: str = "token"
    surrogate: str = "clip"
    clip_low: NonNegative = 0.2
    clip_high: NonNegative = 0.2
    resample: Annotated[Natural, Sentinel(0, "never")] = 0
    drop_truncated: bool = False
    truncate_importance: Positive = 2.0

    @property
    def objective(self) -> Rollouts:
        reference = ("reference_logprobs",) if self.beta else ()
        per_token = ("importance_weights", *reference, "loss_weights")
        return self.rollouts(self.group, per_token, ("advantages", "zero_std"))

    @property
    def reads_reference(self) -> bool:
        return self.beta > 0

    @property
    def headline(self) -> Measure:
        return self.measures[1 if len(self.rewards) > 1 else 0]

    def smaller(self, shrink: Callable[[ModelConfig], ModelConfig]) -> "GRPO":
        return replace(super().smaller(shrink), group=2)

    def surrogate_loss(
        self, logprobs: jax.Array, ratio: jax.Array, advantages: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of each token [B, T], and whether its ratio was clipped; advantages [B, 1]."""
        if self.surrogate == "cispo":
            return pg.cispo_surrogate(logprobs, ratio, advantages, self.clip_high)
        return pg.clipped_surrogate(ratio, advantages, self.clip_low, self.clip_high)

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "GroupRelative":
        return GroupRelative(model, data, self, local_rows)


class GroupRelative(OnPolicy):
    """The learner of GRPO."""

    method: GRPO

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        drawn = self.draw(params, frozen, on_host(batch), key)
        for again in range(1, self.method.resample + 1):
            if not (equal := pg.equal_groups(drawn.totals, self.method.group)).any():
                break
            drawn = self._replaced(drawn, equal, params, frozen, jax.random.fold_in(key, again))
        return self.learned(params, frozen, drawn)

    def _replaced(self, drawn: Drawn, equal: np.ndarray, params: Params, frozen: Any, key: jax.Array) -> Drawn:
        """`drawn`, with groups of other prompts in place of those that are `equal`, where they are not."""
        assert self.data
        group, rng = self.method.group, np.random.default_rng(np.asarray(jax.random.key_data(key)))
        others = self.draw(params, frozen, self.data.other_prompts(drawn.batch, rng), key)
        there = np.flatnonzero(~pg.equal_groups(others.totals, group))
        places = np.flatnonzero(equal)[: len(there)]
        to, of = ((at[:, None] * group + np.arange(group)).ravel() for at in (places, there[: len(places)]))
        batch, totals = {name: array.copy() for name, array in drawn.batch.items()}, drawn.totals.copy()
        for array, new in [*((batch[name], others.batch[name]) for name in batch), (totals, others.totals)]:
            array[to] = new[of]
        return Drawn(batch, totals)

    def learned(self, params: Params, frozen: Any, drawn: Drawn) -> Batch:
        """What the loss reads of completions."""
        method = self.method
        batch = corrected(self.compared(params, drawn.batch), method.truncate_importance)
        totals, real = drawn.totals, batch["weights"] > 0
        if method.beta:
            batch["reference_logprobs"] = self.score(frozen, batch)
            if method.kl == "reward":
                totals = totals - method.beta * (batch["old_logprobs"] - batch["reference_logprobs"]).sum(1)
        kept = real & ~(method.drop_truncated & (batch["truncated"] > 0))[:, None]
        weights = pg.loss_weights(kept, method.aggregation, method.max_new_tokens)
        return {
            **batch,
            "weights": kept.astype(np.float32),
            "advantages": pg.advantages(totals, method.group, method.scale, method.baseline),
            "loss_weights": method.minibatches * weights,
            "zero_std": np.repeat(pg.equal_groups(drawn.totals, method.group), method.group).astype(np.float32),
        }

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The policy is that which was sampled from: there is no dropout."""
        method, mask, rows = self.method, batch["weights"], batch["row_weights"]
        logprobs, entropy, losses, _ = token_logprobs(self.model, params, batch, method.sampling.temperature)
        once = method.updates == (1, 1)
        old = jax.lax.stop_gradient(logprobs) if once else batch["old_logprobs"]
        ratio = pg.policy_ratio(logprobs, old, mask > 0, method.ratio)
        each, clipped = method.surrogate_loss(logprobs, ratio, batch["advantages"][:, None])
        each *= batch["importance_weights"]
        of_tokens = {"entropy": entropy, "clip_ratio": clipped, "importance_ratio": ratio}
        if method.beta:
            of_tokens["kl"] = pg.k3(logprobs, batch["reference_logprobs"], mask > 0)
            each += of_tokens["kl"] * method.beta * (method.kl == "loss")
        loss = jnp.sum(jnp.where(mask > 0, batch["loss_weights"] * each, 0))
        total = loss + sum(losses.values()) * mask.sum()
        metrics = {name: jnp.sum(mask * jax.lax.stop_gradient(values)) for name, values in of_tokens.items()}
        metrics |= {name: jnp.sum(rows * batch[name]) for name in (*self.logged, "zero_std")}
        return total, {**metrics, "loss": loss}
