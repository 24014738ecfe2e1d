"""What a model's completions are like, beside those of the model of the start: for evaluations, and nothing learns it.

It asks all methods one question, whatever they learned from: completions of held-out prompts, their rewards and how
often they win, how far the model has gone (2203.02155, 2009.01325), how long and how diverse they are. Best-of-n is a
way of drawing them. The learner draws, and never trains.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

from lm.bounds import Count
from lm.data.prompts import Rollouts, prompt_text
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.sharding.batches import on_host
from lm.train.loss import Metrics
from lm.train.method import Batch, Sample
from lm.tune.on_policy import OnPolicy
from lm.tune.on_policy_method import OnPolicyMethod

if TYPE_CHECKING:
    from lm.data.loader import Batches

NORMAL = 1.959964  # the 97.5% quantile
GRAMS = (1, 2)


@dataclass(frozen=True)
class CompletionEval(OnPolicyMethod):
    """Measures of one completion of each held-out prompt; fields of all such methods: lm/tune/on_policy_method.py. It
    is for `evaluations`, and trains nothing.

    - Of each reward and of the scorer: its mean (a reward of weight 0 counts in no total, and is measured all the
      same), and the `win_rate`, the share of prompts whose completion gets more than that of the model of the start (a
      tie is half), with half of its 95% interval over the prompts. That model draws the same in all runs.
    - `kl`: the divergence from the model of the start, in nats a completion, as the mean log-ratio of what was drawn;
      of best-of-n besides log n - (n - 1) / n.
    - `completion_length` in tokens; `distinct_1` and `distinct_2`: the different tokens and bigrams among all in a
      batch's completions (1510.03055), which depend on the evaluation's `rows`.
    - `best_of`: completions of a prompt, of which that with the highest total is kept."""

    learns: ClassVar[bool] = False

    best_of: Count = 1

    @property
    def objective(self) -> Rollouts:
        return self.rollouts(1, (), tuple(one.name for one in self.measures if one.name not in self.sources))

    @property
    def measures(self) -> tuple[Measure, ...]:
        means = (Measure(name, name, "a completion", higher_is_better=True) for name in self.sources)
        return (
            *means,
            *(one for name in self.sources for one in _win_rate(name)),
            Measure("kl", "KL from the start", "nats a completion"),
            Measure("completion_length", "completion length", "tokens"),
            *(Measure(f"distinct_{n}", f"distinct-{n}", percent=True, higher_is_better=True) for n in GRAMS),
        )

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "CompletionJudge":
        return CompletionJudge(model, data, self, local_rows)

    def check(self, model: ModelConfig) -> None:
        super().check(model)
        if self.best_of > 1 and not any(one.weight for one in self.rewards) and not self.scorer_model:
            raise ValueError(f"method.best_of={self.best_of} has no reward to choose by: all have the weight 0")


def _win_rate(name: str) -> tuple[Measure, Measure]:
    return (
        Measure(f"{name}_win_rate", f"{name}: win rate", percent=True, higher_is_better=True),
        Measure(f"{name}_win_rate_half_width", f"{name}: half the win rate's 95% interval", percent=True),
    )


class CompletionJudge(OnPolicy):
    """The learner of CompletionEval: it has no loss."""

    method: CompletionEval

    def heldout_rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        """The completions, and what is measured of each row."""
        batch, n = on_host(batch), self.method.best_of
        start = {name: part for name, part in frozen.items() if name not in self.models}
        other = self.draw(start, frozen, batch, jax.random.fold_in(key, 0)).batch
        own = self.best(params, frozen, batch, key)
        found = {f"{name}_win_rate": wins(own[name], other[name]) for name in self.method.sources}
        ratio = (self.score(params, own) - self.score(start, own)).sum(1)
        found["kl"] = ratio + math.log(n) - (n - 1) / n
        there = own["weights"] > 0
        for k in GRAMS:
            found[f"distinct_{k}"] = np.full(len(ratio), distinct(own["targets"], there, k))
        return {**own, **{name: values.astype(np.float32) for name, values in found.items()}}

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return self.heldout_rollout(params, frozen, batch, key)

    def best(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        """Of `best_of` completions of each prompt that with the highest total, of equal ones the first."""
        kept, most = dict[str, Any](), np.full(len(batch["record"]), -np.inf)
        for i in range(1, self.method.best_of + 1):
            drawn, totals = self.draw(params, frozen, batch, jax.random.fold_in(key, i))
            totals = np.nan_to_num(totals, nan=-np.inf)
            better = np.flatnonzero(totals > most) if kept else slice(None)
            kept = kept or {name: array.copy() for name, array in drawn.items()}
            for name, array in drawn.items():
                kept[name][better] = array[better]
            most = np.maximum(most, totals)
        return kept

    @property
    def logged(self) -> tuple[str, ...]:
        own = (one.name for one in self.method.measures if not one.name.endswith("_half_width"))
        return tuple(dict.fromkeys((*own, "reward")))

    def evaluate(self, params: Params, frozen: Any, batch: Batch) -> Metrics:
        squares = {
            f"{name}_win_rate_half_width": (batch["row_weights"] * batch[f"{name}_win_rate"] ** 2).sum()
            for name in self.method.sources
        }
        return {**super().evaluate(params, frozen, batch), **squares}

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        means = super().measure(sums, data, source)
        for name in self.method.sources:
            rate, square = means[f"{name}_win_rate"], means[f"{name}_win_rate_half_width"]
            deviation = math.sqrt(max(square - rate**2, 0.0) / max(sums["completions"], 1.0))
            means[f"{name}_win_rate_half_width"] = NORMAL * deviation
        return means

    def heldout_samples(self, batch: Batch, source: str) -> Iterator[Sample]:
        assert self.data
        for row in np.flatnonzero(batch["row_weights"] > 0):
            prompt = prompt_text(self.data.record(int(batch["record"][row]))["prompt"])
            ids = batch["targets"][row][batch["weights"][row] > 0].tolist()
            text = self.data.tokenizer.decode([id for id in ids if id not in self.data.tokenizer.stop_ids])
            each = ", ".join(f"{name} {batch[name][row]:.3g}" for name in self.method.sources)
            yield Sample(f"{source}, held out", prompt, f"{prompt}{text}\n\n[{each}]")


def wins(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 where `own` is more than `other`, 0.5 where they are equal, else 0."""
    return (own > other) + 0.5 * (own == other)


def distinct(tokens: np.ndarray, there: np.ndarray, n: int) -> float:
    """The share of different n-grams among those of the rows of `tokens` [B, T] where all n are `there`."""
    width = tokens.shape[1] - n + 1
    whole = np.stack([there[:, i : i + width] for i in range(n)]).all(0)
    grams = np.stack([tokens[:, i : i + width] for i in range(n)], axis=-1)[whole]
    return len(np.unique(grams, axis=0)) / max(len(grams), 1)
