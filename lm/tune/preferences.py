"""Methods that learn from preferences: what they share beside their losses.

A batch has both sides of its pairs in packed rows (lm/data/preferences.py). One forward pass gives the log-probability
of each, which a method compares with the other side's, and with those under a reference where it `reads_reference`: the
model that the run starts from, under adapters the same weights without them. The reference's are computed once for each
pair, in the batch in which training first reads it, and kept on the host; a run that resumes computes them again in the
same batches, so that they are the same to the bit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.objective import Objective
from lm.data.preferences import PreferencePairs
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.sharding.batches import on_host
from lm.sharding.shardings import batch_sharding
from lm.sharding.tracing import current
from lm.train.logprobs import token_logprobs
from lm.train.loss import Metrics
from lm.train.method import Batch, BatchReader, Learner, Method, Sample, SampleSettings, Writer
from lm.tune import samples
from lm.tune.sequences import Sequences, sequences

if TYPE_CHECKING:
    from lm.data.loader import Batches

REFERENCE = "reference_logprobs"
READ = ("tokens", "targets", "segment_ids", "positions", "loss_mask", "weights")


class Compared(NamedTuple):
    """The `loss` of each pair [B, P], and metrics: name -> (value [B, P], 1 for the pairs that it is of [B, P])."""

    loss: jax.Array
    metrics: Mapping[str, tuple[jax.Array, jax.Array]]


def chosen_and_rejected(chosen: jax.Array, rejected: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The metrics of pairs whose sides have these implicit rewards [B, P]."""
    every = jnp.ones_like(chosen)
    metrics = {"accuracy": chosen > rejected, "chosen_reward": chosen, "rejected_reward": rejected}
    return {name: (jnp.asarray(value, jnp.float32), every) for name, value in metrics.items()}


@dataclass(frozen=True)
class Preference(Method):
    """A method that learns from preferences. The base class of all."""

    reads_reference: ClassVar[bool] = False

    @property
    def nll_weight(self) -> float:
        """The weight of the negative log-likelihood of the chosen sides' tokens in the loss."""
        return 0.0

    @property
    def objective(self) -> Objective:
        return PreferencePairs()

    @property
    def target_name(self) -> str:
        return self.objective.target_name

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("loss", "loss", f"a {self.target_name}"),
            Measure("accuracy", "accuracy", f"of each held-out {self.target_name}", percent=True),
            Measure("chosen_reward", "chosen reward", "implicit", higher_is_better=True),
            Measure("rejected_reward", "rejected reward", "implicit"),
            Measure("margin", "margin", "of the implicit rewards", higher_is_better=True),
        )

    @property
    def headline(self) -> Measure:
        return self.measures[1]

    def check(self, model: ModelConfig) -> None:
        self.objective.check(model)

    def compare(
        self, policy: Sequences, reference: Sequences | None, values: jax.Array, weights: jax.Array
    ) -> Compared:
        """The losses of pairs. Traced.

        Args:
          policy: log-probabilities [B, P, 2] of both sides.
          reference: the same under the reference; None where the method reads none.
          values: the pairs' margins or labels [B, P].
          weights: the pairs' weights [B, P], 0 where there is no pair."""
        raise NotImplementedError

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "PreferenceLearner":
        kind = ReferencedLearner if self.reads_reference else PreferenceLearner
        return kind(model, data, self, local_rows)


class PreferenceLearner(Learner):
    """The learner of a Preference `method`, on batches of `data`, of which this process reads the `local_rows`."""

    def __init__(
        self,
        model: Transformer,
        data: "Batches | None",
        method: Preference,
        local_rows: np.ndarray | None = None,
    ):
        self.model, self.data, self.method, self.local_rows = model, data, method, local_rows
        self.weights = {"weights": "pairs", **({"first_weights": "tokens"} if method.nll_weight else {})}

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """Without dropout of the model: a side's log-probability is compared with another."""
        compared, nll, extra = self._compared(params, batch)
        weights = batch["weights"]
        loss, metrics = weighted_sums(compared, weights)
        if self.method.nll_weight:
            loss, metrics = loss + self.method.nll_weight * nll, metrics | {"nll": nll}
        return loss + extra * weights.sum(), {"loss": loss, **metrics}

    def evaluate(self, params: Params, frozen: Any, batch: Batch) -> Metrics:
        compared, nll, _ = self._compared(params, batch)
        weights = batch["weights"]
        sums = {"loss": jnp.sum(weights * compared.loss), "pairs": weights.sum()}
        for name, (value, where) in compared.metrics.items():
            sums |= {name: jnp.sum(weights * where * value), f"{name}_count": jnp.sum(weights * where)}
        return sums | ({"nll": nll, "tokens": batch["first_weights"].sum()} if self.method.nll_weight else {})

    def _compared(self, params: Params, batch: Batch) -> tuple[Compared, jax.Array, jax.Array]:
        """The pairs compared, the sum of the chosen tokens' weighted losses, and that of the layers' own."""
        logprobs, _, losses, _ = token_logprobs(self.model, params, batch)
        pairs = batch["weights"].shape[1]
        policy = sequences(logprobs, batch["loss_mask"], batch["segment_ids"], pairs)
        reference = Sequences(batch[REFERENCE], policy.lengths) if REFERENCE in batch else None
        compared = self.method.compare(policy, reference, batch["values"], batch["weights"])
        first = batch["first_weights"]
        nll = -jnp.sum(jnp.where(first > 0, first * logprobs, 0))
        return compared, nll, sum(losses.values(), jnp.zeros(()))

    def batches(self, step: int) -> BatchReader:
        assert self.data
        return self.data.batches(step, self.local_rows)

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        found = {"loss": sums["loss"] / max(sums["pairs"], 1.0)}
        if self.method.nll_weight:
            found["nll"] = sums["nll"] / max(sums["tokens"], 1.0)
            found["loss"] += self.method.nll_weight * found["nll"]
        for name in (name.removesuffix("_count") for name in sums if name.endswith("_count")):
            found[name] = sums[name] / max(sums[f"{name}_count"], 1.0)
        found["margin"] = found["chosen_reward"] - found["rejected_reward"]
        return {measure.name: found[measure.name] for measure in self.method.measures}

    def check_samples(self, settings: SampleSettings) -> None:
        assert self.data
        samples.check_prompts(self.data.tokenizer, self.model.cfg, settings.prompts, samples.reply_prompt)

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        """A reply to each prompt."""
        assert self.data
        return samples.replies(model, settings, self.data.tokenizer)


class ReferencedLearner(PreferenceLearner):
    """One whose method compares with the model of the start, whose log-probabilities are in its batches."""

    reads_start = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.trained, self.heldout = ReferenceCache(self.model), ReferenceCache(self.model)
        self._before: Iterator[int] = iter(())

    def batches(self, step: int) -> BatchReader:
        self._before = iter(range(step))
        return super().batches(step)

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        """The batch with the reference's log-probabilities [B, P, 2]."""
        for step in self._before:
            assert self.data
            self.trained.logprobs(frozen, _placed(self.data.batch(step)))
        return {**batch, REFERENCE: self.trained.logprobs(frozen, batch)}

    def heldout_rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return {**batch, REFERENCE: self.heldout.logprobs(frozen, batch)}


class ReferenceCache:
    """The log-probabilities of pairs under the reference, each as in the first batch that had it."""

    def __init__(self, model: Transformer):
        self.model = model
        self.known: dict[tuple[int, int], np.ndarray] = {}

    def logprobs(self, frozen: Params, batch: Batch) -> np.ndarray:
        """float32 [B, P, 2] of the sides of a batch's pairs, all rows; 0 where there is none."""
        ids, weights = on_host((batch["pair_ids"], batch["weights"]))
        there = weights > 0
        keys = list(map(tuple, ids[there].tolist()))
        if any(key not in self.known for key in keys):
            found = on_host(_reference(self.model, frozen, {name: batch[name] for name in READ}))
            for key, one in zip(keys, found[there], strict=True):
                self.known.setdefault(key, one)
        out = np.zeros((*there.shape, 2), np.float32)
        out[there] = [self.known[key] for key in keys]
        return out


@partial(jax.jit, static_argnums=0)
def _reference(model: Transformer, params: Params, batch: Batch) -> jax.Array:
    logprobs = token_logprobs(model, params, batch).logprobs
    return sequences(logprobs, batch["loss_mask"], batch["segment_ids"], batch["weights"].shape[1]).logprobs


def _placed(batch: Batch) -> Batch:
    """A host batch of all rows on the mesh in use, as training has it."""
    now = current()
    return batch if now is None else jax.device_put(batch, batch_sharding(now[0]))


def weighted_sums(compared: Compared, weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of pairs with these weights [B, P], and their metrics: sums, which add up over micro-batches."""
    share = weights.sum()
    metrics = {name: share * _mean(*each, weights) for name, each in compared.metrics.items()}
    margin = metrics["chosen_reward"] - metrics["rejected_reward"]
    return jnp.sum(weights * compared.loss), {**metrics, "margin": margin}


def _mean(value: jax.Array, where: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean over the pairs in `where`, 0 where there is none."""
    counted = weights * where
    return jnp.sum(counted * value) / jnp.maximum(counted.sum(), jnp.finfo(jnp.float32).tiny)
