"""Pretraining: to predict what an objective asks of rows of text.

It is the first method, and an example of the contract (lm/train/method.py): `Pretrain` is the value, `Pretraining` what
it becomes for a model and data.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lm.data.objective import CausalLM, Objective
from lm.data.store import TokenStore
from lm.model.config import ModelConfig
from lm.model.context import shard_sequence
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.train.loss import Metrics, by_chunks, cross_entropy
from lm.train.method import Batch, Learner, Method, Sample, SampleSettings, Writer
from lm.tune import samples

if TYPE_CHECKING:
    from lm.data.loader import Batches


@dataclass(frozen=True)
class Pretrain(Method):
    """Learn to predict what `objective` asks of rows of text, with a `z_loss` (lm/train/loss.py) of that weight."""

    objective: Objective = CausalLM()
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ValueError(f"z_loss={self.z_loss}: expected at least 0")

    @property
    def measures(self) -> tuple[Measure, ...]:
        known = {
            "loss": Measure("loss", "loss", f"nats a {self.target_name}"),
            "perplexity": Measure("perplexity", "perplexity"),
            "accuracy": Measure("accuracy", "accuracy", f"of each held-out {self.target_name}", percent=True),
            "next_sentence": Measure("next_sentence", "next sentence", percent=True),
            "bits_per_byte": Measure("bits_per_byte", "bits per byte"),
        }
        return tuple(known[name] for name in self.objective.measures)

    @property
    def headline(self) -> Measure:
        named = {measure.name: measure for measure in self.measures}
        return named.get("bits_per_byte") or named["accuracy"]

    @property
    def target_name(self) -> str:
        return self.objective.target_name

    def check(self, model: ModelConfig) -> None:
        self.objective.check(model)

    def build(self, model: Transformer, data: "Batches | None" = None, own: np.ndarray | None = None) -> "Pretraining":
        return Pretraining(model, data, self, own)


@dataclass(frozen=True)
class Pretraining(Learner):
    """Cross-entropy of the targets under `model`, with z-loss, and of next sentences where a batch has them; batches
    from `data`, one a step, of which this process reads the rows `own` (None: all)."""

    model: Transformer
    data: Any = None
    method: Pretrain = Pretrain()
    own: np.ndarray | None = None

    weights = {"weights": "tokens", "next_sentence_weights": "pairs"}

    def init(self, key: jax.Array) -> tuple[Params, Any]:
        return self.model.init(key), ()

    def axes(self) -> Params:
        return self.model.axes()

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the tokens' losses, and metrics that are such sums too."""
        key = key if self.model.cfg.dropout else None
        batch, zigzag = shard_sequence(batch, self.model.cfg.causal)
        x, _, losses = self.model.hidden(params, Inputs.of(batch, zigzag), key=key)

        def chunk_loss(head: Params, x: jax.Array, rest: Batch) -> tuple[jax.Array, Metrics]:
            return cross_entropy(self.model.logits(head, x), rest["targets"], rest["weights"], self.method.z_loss)

        head = {"head": params["head"], "stem": {"tokens": params["stem"]["tokens"]}}
        rest = {name: batch[name] for name in ("targets", "weights")}
        axes, compute = self.model.axes(), self.model.compute
        head_axes = {"head": axes["head"], "stem": {"tokens": axes["stem"]["tokens"]}}
        dtypes = compute.matmul, compute.exchanged
        total, metrics = by_chunks(chunk_loss, head, x, rest, compute.loss_chunk, head_axes, dtypes)
        share = batch["weights"].sum()  # of the whole batch: what is a mean over tokens counts by it
        metrics |= {name: value * share for name, value in losses.items()}
        total += sum(losses.values()) * share
        if "next_sentence" in batch:
            nll, found = self._next_sentence(params, x, batch)
            total, metrics = total + nll, metrics | found
        return total, metrics

    def _next_sentence(self, params: Params, x: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The weighted sums over rows of the loss and of the right answers (`next_sentence`), of hidden states x."""
        logits = self.model.next_sentence(params, x)
        nll, found = cross_entropy(logits, batch["next_sentence"], batch["next_sentence_weights"])
        return nll, {"next_sentence_loss": nll, "next_sentence": found["accuracy"]}

    def batches(self, step: int) -> Iterator[Batch]:
        return self.data.batches(step, self.own)

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        found = measured(sums, data.stores[source, "heldout"])
        return {name: found[name] for name in data.objective.measures}

    def baselines(self, data: "Batches") -> dict[str, dict[str, float]]:
        """What gzip and xz need, where the model's own bits per byte can be compared with it."""
        return {s: data.compression(s) for s in data.sources if "bits_per_byte" in data.objective.measures}

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        """Continuations of the prompts; of another objective than CausalLM, answers to held-out rows."""
        if isinstance(self.method.objective, CausalLM):
            return samples.continuations(model, settings)
        return samples.reconstructions(model, settings, self.data)


def measured(sums: Mapping[str, float], store: TokenStore) -> dict[str, float]:
    """All that pretraining measures, from sums over the targets of a held-out text.

    Args:
      sums: of the losses (nats) and right answers, of `tokens` (targets) and `pairs` of sentences.
      store: the text. Its bits per byte are those of coding every token but each document's first at the mean loss.

    Returns: loss (nats a target), perplexity, accuracy, next_sentence (the share that is right), bits_per_byte."""
    loss = sums["loss"] / max(sums["tokens"], 1.0)
    targets = store.total_tokens - len(store)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums["accuracy"] / max(sums["tokens"], 1.0),
        "next_sentence": sums.get("next_sentence", 0.0) / max(sums.get("pairs", 0.0), 1.0),
        "bits_per_byte": loss * targets / store.total_bytes / math.log(2),
    }
