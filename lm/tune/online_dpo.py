"""Online DPO (2402.04792): preferences between a model's own completions, learned while it writes them.

Each prompt gets two completions or more. The best by the rewards is the chosen side of a pair and the worst the
rejected one, and the loss is DPO's (lm/tune/dpo.py) against the model of the start.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Bounds, Positive, whole
from lm.data.prompts import Rollouts
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.sharding.batches import on_host
from lm.train.logprobs import token_logprobs
from lm.train.loss import Metrics
from lm.train.method import Batch
from lm.tune.dpo import DPO
from lm.tune.on_policy import Drawn, OnPolicy
from lm.tune.on_policy_method import OnPolicyMethod
from lm.tune.policy_gradient import equal_groups
from lm.tune.preferences import weighted_sums
from lm.tune.sequences import Sequences

if TYPE_CHECKING:
    from lm.data.loader import Batches


@dataclass(frozen=True)
class OnlineDPO(OnPolicyMethod):
    """Learn to prefer the best of `group` completions of a prompt to the worst; fields of all such methods:
    lm/tune/on_policy_method.py.

    - `beta`, `loss` and `label_smoothing`: as in DPO.
    - A prompt whose completions all have the same reward is no pair; completions in between carry no loss."""

    group: Annotated[int, whole(2)] = 2
    beta: Positive = 0.1
    loss: str = "sigmoid"
    label_smoothing: Annotated[float, Bounds(0, 0.5, below=True)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.dpo  # which checks its fields

    @property
    def dpo(self) -> DPO:
        """The loss of pairs."""
        return DPO(self.beta, self.loss, self.label_smoothing)

    @property
    def objective(self) -> Rollouts:
        return self.rollouts(self.group, ("reference_logprobs",), ("pair_weights", "zero_std"))

    @property
    def whole_groups(self) -> bool:
        return True

    def smaller(self, shrink: Callable[[ModelConfig], ModelConfig]) -> "OnlineDPO":
        return replace(super().smaller(shrink), group=2)

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "OnlinePairs":
        return OnlinePairs(model, data, self, local_rows)


class OnlinePairs(OnPolicy):
    """The learner of OnlineDPO."""

    method: OnlineDPO
    weights = {**OnPolicy.weights, "pair_weights": "pairs"}

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return self.learned(params, frozen, self.draw(params, frozen, on_host(batch), key))

    def learned(self, params: Params, frozen: Any, drawn: Drawn) -> Batch:
        """What the loss reads of completions; their rows are in the order of `ranked`."""
        group, batch = self.method.group, self.compared(params, drawn.batch)
        batch["reference_logprobs"] = self.score(frozen, batch)
        equal = np.repeat(equal_groups(drawn.totals, group), group)
        batch |= {"pair_weights": np.float32(~equal), "zero_std": np.float32(equal)}
        order = ranked(drawn.totals, group)
        batch = {name: array[order] for name, array in batch.items()}
        batch["pair_weights"][len(order) // group :] = 0  # a pair is weighed in the row of its chosen side
        return batch

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """Without dropout, in the policy as in the reference."""
        mask, rows, method = batch["weights"], batch["row_weights"], self.method
        logprobs, entropy, losses, _ = token_logprobs(self.model, params, batch, method.sampling.temperature)
        policy, reference = (self._pairs(x, mask) for x in (logprobs, batch["reference_logprobs"]))
        weights = batch["pair_weights"].reshape(method.group, -1)[0]
        compared = method.dpo.compare(policy, reference, jnp.zeros_like(weights), weights)
        loss, metrics = weighted_sums(compared, weights)
        kl = jnp.sum(jnp.where(mask > 0, batch["old_logprobs"] - batch["reference_logprobs"], 0), axis=1)
        per_row = {"kl": kl, **{name: batch[name] for name in (*self.logged, "zero_std")}}
        metrics |= {name: jnp.sum(rows * values) for name, values in per_row.items()}
        metrics["entropy"] = jnp.sum(mask * jax.lax.stop_gradient(entropy))
        return loss + sum(losses.values()) * mask.sum(), {**metrics, "loss": loss}

    def _pairs(self, logprobs: jax.Array, mask: jax.Array) -> Sequences:
        """The chosen and the rejected completion of each prompt [B / group, 2], of rows [B, T] in the order of
        `ranked`."""
        sums = jnp.where(mask > 0, logprobs, 0).sum(1), (mask > 0).sum(1)
        return Sequences(*(x.reshape(self.method.group, -1)[:2].T for x in sums))


def ranked(rewards: np.ndarray, group: int) -> np.ndarray:
    """The order [B] of rows by their rewards [B]: the best of each group, then the worst of each, then all others. The
    chosen and the rejected row of a pair are so in the same micro-batch, which has every m-th row."""
    by_group = rewards.reshape(-1, group)
    order = np.argsort(-by_group, axis=1, kind="stable")  # NaN, which is no reward, comes last
    each, worst = np.arange(len(order)), np.maximum((~np.isnan(by_group)).sum(1) - 1, 1)
    order[each, 1], order[each, worst] = order[each, worst], order[each, 1]
    return (order + group * each[:, None]).T.ravel()
