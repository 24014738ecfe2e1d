"""Reward models: of two answers to a prompt the better one gets more (2203.02155, section 3.5).

The probability that one is preferred to the other is the sigmoid of the difference of their rewards (Bradley and Terry,
1952). Both sides of a pair are segments of one packed row (lm/data/preferences.py), and the reward of each is the
model's score at its last token.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import NonNegative, check
from lm.data.objective import Objective
from lm.data.preferences import SIDES, WholePairs
from lm.model.config import ModelConfig
from lm.model.context import shard_sequence
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.train.loss import Metrics
from lm.train.method import Batch, BatchReader, Learner, Method, Sample, SampleSettings, Writer
from lm.tune.sequences import by_side

if TYPE_CHECKING:
    from lm.data.loader import Batches

BINS = 10  # of the probability that is given to the side with the higher reward, from 0.5 to 1
PER_TOKEN = ("tokens", "segment_ids", "positions", "ends")
SHOWN = 2  # held-out pairs of a source


@dataclass(frozen=True)
class Reward(Method):
    """Learn rewards r by -log sigmoid(r_chosen - r_rejected - margin) + centering (r_chosen + r_rejected)^2.

    The margin is that of the pair's record, 0 where it has none (2307.09288, section 3.2.2). Differences alone leave
    the rewards' level free, and `centering` holds it near 0 (2312.09244). The model is one with a score, such as
    `scorer(read_config(path))`; where the run starts from a model of texts, its score is new."""

    centering: NonNegative = 0.0

    def __post_init__(self) -> None:
        check(self, "method")

    @property
    def objective(self) -> Objective:
        return WholePairs()

    @property
    def target_name(self) -> str:
        return self.objective.target_name

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("loss", "loss", "nats a pair"),
            Measure("accuracy", "accuracy", "of held-out pairs", percent=True, higher_is_better=True),
            Measure("calibration_error", "calibration error", f"expected, in {BINS} bins", percent=True),
            Measure("margin", "margin", "of the rewards", higher_is_better=True),
            Measure("mean_reward", "mean reward"),
        )

    @property
    def headline(self) -> Measure:
        return self.measures[1]

    def check(self, model: ModelConfig) -> None:
        if model.output.scores != 1 or model.has_encoder or not model.causal:
            raise ValueError(
                f"Reward learns one score of a decoder, and model.output.scores={model.output.scores}, model.causal="
                f"{model.causal}, with{'' if model.has_encoder else 'out'} an encoder: take scorer(…) of a decoder "
                "(lm.model.families), which is model.output=NoOutput(scores=1)"
            )

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "RewardLearner":
        return RewardLearner(model, data, self, local_rows)


@dataclass(frozen=True)
class RewardLearner(Learner):
    """`method` on batches from `data`, of which this process reads the `local_rows` (None: all)."""

    model: Transformer
    data: Any = None
    method: Reward = Reward()
    local_rows: np.ndarray | None = None

    weights = {"weights": "pairs"}

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        r, losses = self._rewards(params, batch, key)
        total, metrics = reward_loss(r, batch["values"], batch["weights"], self.method.centering)
        share = batch["weights"].sum()
        return total + sum(losses.values()) * share, metrics | {name: x * share for name, x in losses.items()}

    def _rewards(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The rewards [B, P, 2] of both sides of each pair, and the layers' own losses."""
        pairs, cfg = batch["weights"].shape[1], self.model.cfg
        tokens, zigzag = shard_sequence({name: batch[name] for name in PER_TOKEN}, cfg.causal)
        x, _, losses, _ = self.model.hidden(params, Inputs.of(tokens, zigzag), key=key if cfg.dropout else None)
        scores = self.model.scores(params, x)[..., 0] * tokens["ends"]
        return by_side(scores, tokens["segment_ids"], pairs), losses

    def evaluate(self, params: Params, frozen: Any, batch: Batch) -> Metrics:
        r, _ = self._rewards(params, batch, None)
        weights = batch["weights"]
        sums = reward_loss(r, batch["values"], weights)[1] | reliability(r[..., 0] - r[..., 1], weights)
        return sums | {"pairs": weights.sum()}

    def batches(self, step: int) -> BatchReader:
        reader: BatchReader = self.data.batches(step, self.local_rows)
        return reader

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        error = calibration_error(sums)
        return {m.name: error if m.name == "calibration_error" else _mean(sums, m.name) for m in self.method.measures}

    def baselines(self, data: "Batches") -> dict[str, dict[str, float]]:
        """The accuracy of preferring the longer side."""
        return {source: {"the longer one": _longer(data.stores[source, "heldout"])} for source in data.sources}

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        """The first held-out pairs of each source, with their rewards."""
        for source in self.data.sources if settings.sample_tokens else ():
            batch = next(self.data.heldout(source, SHOWN))
            rewards, _ = jax.jit(self._rewards)(model.params, {n: jnp.asarray(a) for n, a in batch.items()}, None)
            for row, k in np.argwhere(batch["weights"] > 0)[:SHOWN]:
                texts = (batch["tokens"][row][batch["segment_ids"][row] == 2 * k + side] for side in (1, 2))
                decoded = [self.data.tokenizer.decode(ids.tolist()) for ids in texts]
                scored = zip(SIDES, np.asarray(rewards)[row, k], decoded, strict=True)
                text = "\n\n".join(f"{side}, {reward:+.3f}:\n{own}" for side, reward, own in scored)
                yield Sample(f"{source}, a held-out pair and its rewards", "", text)


def reward_loss(
    rewards: jax.Array, margins: jax.Array, weights: jax.Array, centering: float = 0.0
) -> tuple[jax.Array, Metrics]:
    """The loss of pairs, and metrics, all weighted sums.

    Args:
      rewards: [..., 2], of the chosen side and of the rejected one.
      margins: [...], by how much the first is to be larger at least.
      weights: [...], 0 where there is no pair.
      centering: the weight of the square of the sum of both rewards."""
    chosen, rejected = rewards[..., 0], rewards[..., 1]
    loss = jnp.sum(weights * -jax.nn.log_sigmoid(chosen - rejected - margins))
    metrics = {
        "loss": loss,
        "accuracy": jnp.sum(weights * (chosen > rejected)),
        "margin": jnp.sum(weights * (chosen - rejected)),
        "mean_reward": jnp.sum(weights * (chosen + rejected)) / 2,
    }
    return loss + centering * jnp.sum(weights * (chosen + rejected) ** 2), metrics


def reliability(difference: jax.Array, weights: jax.Array) -> Metrics:
    """Of pairs whose rewards have this difference [...], by bins of the probability that the model gives to the side
    with the higher one: how many, how many are right, and the sum of the probabilities; an equal pair is half right."""
    confidence = jax.nn.sigmoid(jnp.abs(difference))
    at = jnp.minimum(jnp.floor((confidence - 0.5) * 2 * BINS), BINS - 1)
    right = jnp.where(difference == 0, 0.5, difference > 0)
    sums = {"count": jnp.ones_like(difference), "right": right, "confidence": confidence}
    return {f"{name}_{i}": jnp.sum(weights * (at == i) * x) for name, x in sums.items() for i in range(BINS)}


def calibration_error(sums: Mapping[str, float]) -> float:
    """The expected calibration error (1706.04599, section 3) of the sums of `reliability`: the mean over the pairs of
    the distance, in each bin, of the share that is right from the mean probability."""
    apart = sum(abs(sums[f"right_{i}"] - sums[f"confidence_{i}"]) for i in range(BINS))
    return apart / max(sum(sums[f"count_{i}"] for i in range(BINS)), 1.0)


def _mean(sums: Mapping[str, float], name: str) -> float:
    return sums[name] / max(sums["pairs"], 1.0)


def _longer(store: Any) -> float:
    """The share of a store's pairs whose chosen side has more tokens; a half of those with as many."""
    first, second = store.second, store.lengths - store.second
    return float(np.mean((first > second) + 0.5 * (first == second)))
