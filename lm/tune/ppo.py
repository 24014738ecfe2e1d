"""Proximal policy optimization from feedback (PPO, 1707.06347; 1909.08593, 2203.02155).

The model is policy and critic: its output of scores, on the policy's own trunk, is the value of what is written so far.
A completion's score comes at its last token, and each token costs what it is likelier than under the model of the
start. Advantages and losses are pure functions of arrays (lm/tune/gae.py, lm/tune/policy_gradient.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Count, Finite, Fraction, NonNegative, Positive
from lm.data.prompts import Rollouts
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.sharding.batches import on_host
from lm.train.logprobs import token_logprobs
from lm.train.loss import Metrics
from lm.train.method import Batch
from lm.tune import gae
from lm.tune import policy_gradient as pg
from lm.tune.kl_control import FixedKL
from lm.tune.on_policy import SCORED, Drawn, OnPolicy, corrected, score_tokens
from lm.tune.on_policy_method import OnPolicyMethod

if TYPE_CHECKING:
    from lm.data.loader import Batches

STATE = "ppo"  # in `frozen`, beside the model of the start: what is kept from step to step
KEPT = ("kl_coefficient", "reward_mean", "reward_std")


@dataclass(frozen=True)
class PPO(OnPolicyMethod):
    """Learn from what completions are worth beyond what a critic expects; fields of all such methods:
    lm/tune/on_policy_method.py. The model has an output of scores (`model.output.scores=1`), its value head, which
    starts at 0.

    - `normalize`: rewards less the mean, over the deviation, of the first batch, which the reference itself has drawn.
    - `missing_stop`: what a completion scores in place of its reward where it was cut (None: its reward).
    - `kl`: FixedKL or AdaptiveKL, off each token's reward. `whiten_rewards`: to the variance 1, with their mean.
    - `discount` and `decay` of advantages (gamma and lambda of 1506.02438), which are whitened.
    - `clip` of the ratio to the policy that has drawn, `clip_value` of values around its; `value_weight` and `entropy`:
      what the critic's loss and the policy's entropy count in the loss.
    - `truncate_importance`: as in GRPO."""

    epochs: Count = 4
    normalize: bool = False
    missing_stop: Finite | None = -1.0
    kl: FixedKL = FixedKL()
    whiten_rewards: bool = False
    discount: Fraction = 1.0
    decay: Fraction = 0.95
    clip: Positive = 0.2
    clip_value: Positive = 0.2
    value_weight: NonNegative = 0.1
    entropy: NonNegative = 0.0
    truncate_importance: Positive = 2.0

    @property
    def objective(self) -> Rollouts:
        per_token = ("importance_weights", "reference_logprobs", "values", "advantages", "returns")
        return self.rollouts(1, per_token, ("score", *KEPT))

    def check(self, model: ModelConfig) -> None:
        super().check(model)
        if model.output.scores != 1:
            raise ValueError(f"model.output.scores={model.output.scores}: PPO reads one score a token, set it to 1")

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "ActorCritic":
        return ActorCritic(model, data, self, local_rows)


class ActorCritic(OnPolicy):
    """The learner of PPO. `frozen` is the model of the start, and beside its parameters those of the scorer and the
    STATE."""

    method: PPO

    def begin(self, start: Params, key: jax.Array, models: Mapping[str, Params]) -> tuple[Params, Any]:
        head = {**start["head"], "score": jnp.zeros_like(start["head"]["score"])}
        kept = dict(zip(KEPT, (self.method.kl.coefficient, 0.0, 0.0), strict=True))
        state = {name: jnp.full(1, value, jnp.float32) for name, value in kept.items()}
        return {**start, "head": head}, {**super().begin(start, key, models)[1], STATE: state}

    def frozen_axes(self) -> Any:
        return {**super().frozen_axes(), STATE: dict.fromkeys(KEPT, (None,))}

    def advance(self, frozen: Any, batch: Batch) -> Any:
        rows = batch["row_weights"]
        kl = jnp.sum(batch["weights"] * (batch["old_logprobs"] - batch["reference_logprobs"]))
        before = {name: batch[name][:1] for name in KEPT}
        after = self.method.kl.after(before["kl_coefficient"], kl / jnp.maximum(rows.sum(), 1), rows.sum())
        return {**frozen, STATE: {**before, "kl_coefficient": after}}

    # ---------------------------------------------------------------- completions

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return self.learned(params, frozen, self.draw(params, frozen, on_host(batch), key))

    def learned(self, params: Params, frozen: Any, drawn: Drawn) -> Batch:
        """What the loss reads of completions; those without a reward carry none."""
        method = self.method
        batch = corrected(self.compared(params, drawn.batch), method.truncate_importance)
        mask = (batch["weights"] > 0) & ~np.isnan(drawn.totals)[:, None]
        reference, values = self.score(frozen, batch), np.where(mask, self.values(params, batch), 0)
        coefficient, mean, std = (float(on_host(frozen[STATE][name])[0]) for name in KEPT)
        totals, known = np.nan_to_num(drawn.totals), mask.any(1)
        if method.normalize and not std and known.any():
            mean, std = float(totals[known].mean()), float(totals[known].std())
        scores = (totals - mean) / (std or 1.0)
        if method.missing_stop is not None:
            scores = np.where(batch["truncated"] > 0, method.missing_stop, scores)
        rewards = gae.token_rewards(scores, batch["old_logprobs"] - reference, coefficient, mask)
        if method.whiten_rewards:
            rewards = gae.whiten(rewards, mask, shift_mean=False)
        found = gae.advantages(rewards, values, mask, method.discount, method.decay)
        per_token = {"weights": mask, "reference_logprobs": reference, "values": values, "returns": found + values}
        per_token["advantages"] = gae.whiten(found, mask)
        kept = dict(zip(KEPT, (coefficient, mean, std), strict=True))
        per_row = {"score": scores, **{name: np.full(len(scores), value) for name, value in kept.items()}}
        return {**batch, **{name: array.astype(np.float32) for name, array in (per_token | per_row).items()}}

    def values(self, params: Params, batch: Batch) -> np.ndarray:
        """The values [B, T] before each target."""
        return np.asarray(on_host(score_tokens(self.model, params, {name: batch[name] for name in SCORED})))

    # ---------------------------------------------------------------- the loss

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """Without dropout: the policy is that which was sampled from."""
        method, mask, rows = self.method, batch["weights"], batch["row_weights"]
        new = token_logprobs(self.model, params, batch, method.sampling.temperature, method.entropy > 0)
        ratio = pg.policy_ratio(new.logprobs, batch["old_logprobs"], mask > 0, "token")
        policy, clipped = pg.clipped_surrogate(ratio, batch["advantages"], method.clip, method.clip)
        policy *= batch["importance_weights"]
        value, value_clipped = gae.clipped_value_loss(new.values, batch["values"], batch["returns"], method.clip_value)
        each = policy + method.value_weight * value - method.entropy * new.entropy
        loss = jnp.sum(jnp.where(mask > 0, mask * each, 0))
        of_tokens = {"policy_loss": policy, "value_loss": value, "entropy": new.entropy, "importance_ratio": ratio}
        of_tokens |= {"clip_ratio": clipped, "value_clip_ratio": value_clipped}
        metrics = {name: jnp.sum(mask * jax.lax.stop_gradient(a)) for name, a in of_tokens.items()}
        kl = jnp.sum((mask > 0) * (batch["old_logprobs"] - batch["reference_logprobs"]), axis=1)
        per_row = {"kl": kl, **{name: batch[name] for name in (*self.logged, "score", "kl_coefficient")}}
        metrics |= {name: jnp.sum(rows * values) for name, values in per_row.items()}
        return loss + sum(new.losses.values()) * mask.sum(), {**metrics, "loss": loss}
