"""Learning from completions with a critic: the learner of PPO (lm/tune/ppo.py)."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.sharding.batches import on_host
from lm.train.logprobs import token_logprobs, token_scores
from lm.train.loss import Metrics
from lm.train.method import Batch
from lm.tune import gae
from lm.tune import policy_gradient as pg
from lm.tune.kl_control import FixedKL
from lm.tune.on_policy import PER_ROW, Drawn, OnPolicy, OnPolicyMethod

SCORED = ("tokens", "segment_ids", "positions")
STATE = "ppo"  # in `frozen`, beside the model of the start: what is kept from step to step
KEPT = ("kl_coefficient", "reward_mean", "reward_std")


class ActorCriticMethod(OnPolicyMethod, Protocol):
    """What `ActorCritic` reads of a method's value."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def scorer_model(self) -> ModelConfig | None: ...

    @property
    def kl(self) -> FixedKL: ...

    @property
    def normalize(self) -> bool: ...

    @property
    def missing_stop(self) -> float | None: ...

    @property
    def whiten_rewards(self) -> bool: ...

    @property
    def discount(self) -> float: ...

    @property
    def decay(self) -> float: ...

    @property
    def clip(self) -> float: ...

    @property
    def clip_value(self) -> float: ...

    @property
    def value_weight(self) -> float: ...

    @property
    def entropy(self) -> float: ...


class ActorCritic(OnPolicy):
    """The learner of PPO. `frozen` is the model of the start, and beside its parameters those of the scorer and the
    STATE."""

    method: ActorCriticMethod

    def __init__(self, model: Transformer, data: Any, method: ActorCriticMethod, local_rows: np.ndarray | None = None):
        super().__init__(model, data, method, local_rows)
        self.reads_start = True  # its KL divergence is a metric even where it costs nothing
        self.scorer = Transformer(method.scorer_model, model.compute) if method.scorer_model else None

    @property
    def models(self) -> Mapping[str, Transformer]:
        return {"scorer": self.scorer} if self.scorer else {}

    def begin(self, start: Params, key: jax.Array, models: Mapping[str, Params]) -> tuple[Params, Any]:
        head = {**start["head"], "score": jnp.zeros_like(start["head"]["score"])}
        kept = dict(zip(KEPT, (self.method.kl.coefficient, 0.0, 0.0), strict=True))
        state = {name: jnp.full(1, value, jnp.float32) for name, value in kept.items()}
        return {**start, "head": head}, {**jax.tree.map(jnp.copy, start), **models, STATE: state}

    def frozen_axes(self) -> Any:
        scorers = {role: model.axes() for role, model in self.models.items()}
        return {**self.axes(), **scorers, STATE: dict.fromkeys(KEPT, (None,))}

    def advance(self, frozen: Any, batch: Batch) -> Any:
        rows = batch["row_weights"]
        kl = jnp.sum(batch["weights"] * (batch["old_logprobs"] - batch["reference_logprobs"]))
        before = {name: batch[name][:1] for name in KEPT}
        after = self.method.kl.after(before["kl_coefficient"], kl / jnp.maximum(rows.sum(), 1), rows.sum())
        return {**frozen, STATE: {**before, "kl_coefficient": after}}

    @property
    def logged(self) -> tuple[str, ...]:
        return (*PER_ROW, *self.method.sources)

    # ---------------------------------------------------------------- completions

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return self.learned(params, frozen, self.scored(frozen, self.draw(params, on_host(batch), key)))

    def heldout_rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return self.scored(frozen, self.draw(params, on_host(batch), key)).batch

    def scored(self, frozen: Any, drawn: Drawn) -> Drawn:
        """`drawn`, with what the scorer gives."""
        if not self.scorer:
            return drawn
        scores = last_scores(self.scorer, frozen["scorer"], drawn.batch)
        totals = np.nan_to_num(drawn.totals) + scores
        return Drawn({**drawn.batch, "scorer": scores, "reward": totals.astype(np.float32)}, totals)

    def learned(self, params: Params, frozen: Any, drawn: Drawn) -> Batch:
        """What the loss reads of completions; those without a reward carry none."""
        method, batch = self.method, self.compared(params, drawn.batch)
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
        return np.asarray(on_host(_scores(self.model, params, {name: batch[name] for name in SCORED})))

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


@partial(jax.jit, static_argnums=0)
def _scores(model: Transformer, params: Params, batch: Batch) -> jax.Array:
    return token_scores(model, params, batch)


def last_scores(scorer: Transformer, params: Params, batch: Batch) -> np.ndarray:
    """The scores [B] of a reward model of the last token of each completion in a host batch."""
    rows, length = np.arange(len(batch["tokens"])), batch["tokens"].shape[1]
    last = length - 1 - np.argmax(batch["weights"][:, ::-1] > 0, axis=1)  # of which the last token is the target
    read = {name: batch[name].copy() for name in SCORED}
    at = np.minimum(last + 1, length - 1)
    read["tokens"][rows, at], read["segment_ids"][rows, at] = batch["targets"][rows, last], 1
    read["positions"][rows, at] = at
    scores = np.asarray(on_host(_scores(scorer, params, read)))[rows, at]
    return np.where(batch["weights"].any(1), scores, 0).astype(np.float32)
