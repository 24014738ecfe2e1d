"""What is learned: a task gives batches and the loss of one. The training loop knows nothing else about the method.

Pretraining reads batches from the data and ignores the state; a method of reinforcement learning asks the state for
rollouts. So both run in the same loop.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from lm.model.attention import Mask
from lm.model.transformer import Params, Transformer
from lm.train.loss import Metrics, by_chunks, cross_entropy
from lm.train.state import TrainState

Batch = dict[str, Any]


class Task(Protocol):
    """One method of training.

    `loss` is a sum over tokens whose `batch["weights"]` sum to 1 over the whole batch, so that the losses and gradients
    of micro-batches add up. It is traced; `key` is None where nothing may be random (evaluation)."""

    def init(self, key: jax.Array) -> Params: ...

    def axes(self) -> Params: ...

    def loss(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]: ...

    def batches(self, state: TrainState) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Pretraining:
    """Cross-entropy of the targets under `model`, with z-loss; batches from `source`, one a step."""

    model: Transformer
    source: Any
    z_loss: float = 0.0

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        return self.model.init(key)

    def axes(self) -> Params:
        """Their logical axes."""
        return self.model.axes()

    def loss(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the tokens' losses, and metrics that are such sums too."""
        segments = batch.get("segment_ids")
        mask = Mask(query_segments=segments, key_segments=segments)
        key = key if self.model.cfg.dropout else None
        x, _ = self.model.hidden(params, batch["tokens"], batch.get("positions"), mask, key=key)

        def chunk_loss(head: Params, x: jax.Array, rest: Batch) -> tuple[jax.Array, Metrics]:
            return cross_entropy(self.model.logits(head, x), rest["targets"], rest["weights"], self.z_loss)

        head = {"head": params["head"], "stem": {"tokens": params["stem"]["tokens"]}}
        rest = {name: batch[name] for name in ("targets", "weights")}
        return by_chunks(chunk_loss, head, x, rest, self.model.compute.loss_chunk)

    def batches(self, state: TrainState) -> Iterator[Batch]:
        """The batches from the state's step on."""
        return self.source.batches(int(state.step), jax.process_index(), jax.process_count())
