"""What is learned: a task gives batches and the loss of one. The training loop knows nothing else about the method.

Pretraining reads batches from the data and ignores the state; a method of reinforcement learning asks the state for
rollouts. So both run in the same loop.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from lm.model.context import shard_sequence
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.train.loss import Metrics, by_chunks, cross_entropy
from lm.train.state import TrainState

Batch = dict[str, Any]


class Task(Protocol):
    """One method of training.

    `loss` is a sum over tokens whose `batch["weights"]` sum to 1 over the whole batch (and over rows, whose
    "next_sentence_weights" do), so that the losses and gradients of micro-batches add up. It is traced; `key` is None
    where nothing may be random (evaluation)."""

    def init(self, key: jax.Array) -> Params: ...

    def axes(self) -> Params: ...

    def loss(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]: ...

    def batches(self, state: TrainState) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Pretraining:
    """Cross-entropy of the targets under `model`, with z-loss, and of next sentences where a batch has them; batches
    from `source`, one a step, of which this process reads the rows `own` (None: all)."""

    model: Transformer
    source: Any
    z_loss: float = 0.0
    own: np.ndarray | None = None

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        return self.model.init(key)

    def axes(self) -> Params:
        """Their logical axes."""
        return self.model.axes()

    def loss(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the tokens' losses, and metrics that are such sums too."""
        key = key if self.model.cfg.dropout else None
        batch, zigzag = shard_sequence(batch, self.model.cfg.causal)
        x, _, losses = self.model.hidden(params, Inputs.of(batch, zigzag), key=key)

        def chunk_loss(head: Params, x: jax.Array, rest: Batch) -> tuple[jax.Array, Metrics]:
            return cross_entropy(self.model.logits(head, x), rest["targets"], rest["weights"], self.z_loss)

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

    def batches(self, state: TrainState) -> Iterator[Batch]:
        """The batches from the state's step on."""
        return self.source.batches(int(state.step), self.own)
