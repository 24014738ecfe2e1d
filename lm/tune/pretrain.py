"""Pretraining: maximum likelihood of an objective's targets in rows of text.

The first method, and an example of the contract (lm/train/method.py): `Pretrain` is the value, and `Pretraining` the
learner that it builds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import NonNegative, Sentinel
from lm.data.objective import CausalLM, Objective
from lm.data.store import TokenStore
from lm.model.config import ModelConfig
from lm.model.context import shard_sequence
from lm.model.inputs import Inputs
from lm.model.multi_token import Predicted
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.train.loss import Metrics, chunked_loss, cross_entropy
from lm.train.method import Batch, BatchReader, Learner, Method, Sample, SampleSettings, Writer
from lm.tune import samples

if TYPE_CHECKING:
    from lm.data.loader import Batches


@dataclass(frozen=True)
class Pretrain(Method):
    """Predict the targets of `objective` by cross-entropy, with a z-loss of weight `z_loss` (lm/train/loss.py). Modules
    of multi-token prediction learn likewise what they predict (lm/model/multi_token.py)."""

    objective: Objective = CausalLM()
    z_loss: Annotated[NonNegative, Sentinel(0, "none")] = 0.0

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ValueError(f"z_loss={self.z_loss}: expected at least 0")

    @property
    def measures(self) -> tuple[Measure, ...]:
        article = "an" if self.target_name[0] in "aeiou" else "a"
        known = {
            "loss": Measure("loss", "loss", f"nats {article} {self.target_name}"),
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
    def greedy_samples(self) -> bool:
        return not isinstance(self.objective, CausalLM)

    @property
    def target_name(self) -> str:
        return self.objective.target_name

    def check(self, model: ModelConfig) -> None:
        self.objective.check(model)

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "Pretraining":
        return Pretraining(model, data, self, local_rows)


@dataclass(frozen=True)
class Pretraining(Learner):
    """Cross-entropy of the targets under `model`, with z-loss, and of next sentences where a batch has them; batches
    from `data`, one a step, of which this process reads the `local_rows` (None: all)."""

    model: Transformer
    data: Any = None
    method: Pretrain = Pretrain()
    local_rows: np.ndarray | None = None

    weights = {"weights": "tokens", "next_sentence_weights": "pairs"}

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the tokens' losses, and metrics that are weighted sums too."""
        key = key if self.model.cfg.dropout else None
        batch, zigzag = shard_sequence(batch, self.model.cfg.causal)
        inputs, compute = Inputs.of(batch, zigzag), self.model.compute
        (x, _, losses, _), ahead = self.model.hidden_ahead(params, inputs, key=key)

        def chunk_loss(heads: Params, x: jax.Array, rest: Batch) -> tuple[jax.Array, Metrics]:
            return self._chunk_loss(heads, x, rest)

        heads, rest = self._heads(params, frozen), self._targets(frozen, batch, inputs)
        dtypes = compute.matmul, compute.exchanged
        total, metrics = chunked_loss(chunk_loss, heads, x, rest, compute.loss_chunk, self._head_axes(), dtypes)
        share = batch["weights"].sum()  # of the whole batch's weights: means over tokens count by it
        metrics |= {name: value * share for name, value in losses.items()}
        total += sum(losses.values()) * share
        if "next_sentence" in batch:
            nll, own = self._next_sentence(params, x, batch)
            total, metrics = total + nll, metrics | own
        if ahead:
            more, own = self._ahead(params, batch, ahead)
            total, metrics = total + more, metrics | own
        return total, metrics

    def _ahead(self, params: Params, batch: Batch, ahead: Sequence[Predicted]) -> tuple[jax.Array, Metrics]:
        """What the modules of multi-token prediction add to the loss: their mean, times its weight. Each is the
        weighted sum over the places that the module has, as if it had all, so that micro-batches add up; of each there
        are metrics "multi_token_K_NAME"."""
        compute, config, output = self.model.compute, self.model.cfg.multi_token, of_output(params)
        assert config
        axes, share = of_output(self.model.axes()), batch["weights"].sum()
        total, metrics = jnp.zeros(()), Metrics()

        def chunk_loss(heads: Params, x: jax.Array, rest: Batch) -> tuple[jax.Array, Metrics]:
            return cross_entropy(self.model.logits(heads, x), rest["targets"], rest["weights"], self.method.z_loss)

        for k, one in enumerate(ahead, 1):
            heads = {**output, "head": {**output["head"], **one.head}}
            rest = {"targets": batch["targets"], "weights": batch["weights"] * (one.segments > 0)}
            dtypes = compute.matmul, compute.exchanged
            loss, own = chunked_loss(chunk_loss, heads, one.x, rest, compute.loss_chunk, axes, dtypes)
            total += loss + sum(one.losses.values()) * share
            own |= {name: value * share for name, value in one.losses.items()}
            metrics |= {f"multi_token_{k}_{name}": value for name, value in own.items()}
        return total * (config.weight / len(ahead)), metrics

    def _heads(self, params: Params, frozen: Any) -> Params:
        """The parameters that a chunk's loss reads, of those of the model."""
        return of_output(params)

    def _head_axes(self) -> Params:
        """Their logical axes."""
        return of_output(self.model.axes())

    def _targets(self, frozen: Any, batch: Batch, inputs: Inputs) -> Batch:
        """What a chunk's loss reads of its tokens: arrays [B, T, ...]."""
        return {name: batch[name] for name in ("targets", "weights")}

    def _chunk_loss(self, heads: Params, x: jax.Array, rest: Batch) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the losses of a chunk's tokens, of hidden states x [B, t, D]."""
        return cross_entropy(self.model.logits(heads, x), rest["targets"], rest["weights"], self.method.z_loss)

    def _next_sentence(self, params: Params, x: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The weighted sums over rows of the loss and of correct predictions (`next_sentence`), of hidden states x."""
        logits = self.model.next_sentence(params, x)
        nll, metrics = cross_entropy(logits, batch["next_sentence"], batch["next_sentence_weights"])
        return nll, {"next_sentence_loss": nll, "next_sentence": metrics["accuracy"]}

    def batches(self, step: int) -> BatchReader:
        return self.data.batches(step, self.local_rows)

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        every = measured(sums, data.stores[source, "heldout"])
        return {name: every[name] for name in data.objective.measures}

    def baselines(self, data: "Batches") -> dict[str, dict[str, float]]:
        """Bits per byte of gzip and xz, where the objective has bits per byte."""
        return {s: data.compression(s) for s in data.sources if "bits_per_byte" in data.objective.measures}

    def check_samples(self, settings: SampleSettings) -> None:
        if isinstance(self.method.objective, CausalLM):
            samples.check_prompts(self.data.tokenizer, self.model.cfg, settings.prompts)

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        """Continuations of the prompts; under an objective other than CausalLM, reconstructions of held-out rows."""
        if isinstance(self.method.objective, CausalLM):
            return samples.continuations(model, settings)
        return samples.reconstructions(model, settings, self.data)


def of_output(tree: Params) -> Params:
    """What the output reads of a tree of all parameters, or of their axes."""
    return {"head": tree["head"], "stem": {"tokens": tree["stem"]["tokens"]}}


def measured(sums: Mapping[str, float], store: TokenStore) -> dict[str, float]:
    """Every measure of pretraining, from sums over the targets of a held-out text.

    Args:
      sums: losses (nats) and correct predictions, over `tokens` targets and `pairs` of sentences.
      store: the text; its bits per byte are of every token but each document's first, coded at the mean loss, over the
        bytes of the same tokens.

    Returns: loss (nats a target), perplexity, accuracy, next_sentence (an accuracy), bits_per_byte."""
    loss = sums["loss"] / max(sums["tokens"], 1.0)
    targets = store.total_tokens - len(store)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums["accuracy"] / max(sums["tokens"], 1.0),
        "next_sentence": sums.get("next_sentence", 0.0) / max(sums.get("pairs", 0.0), 1.0),
        "bits_per_byte": loss * targets / store.coded_bytes / math.log(2),
    }
