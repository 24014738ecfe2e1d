"""Objectives: what a model predicts from a row of tokens.

A packing makes rows of tokens; an objective turns them into the batch of inputs and targets that a model reads. It is a
pure function of the rows, of the `ObjectiveContext` (the length of a row, the tokenizer's ids), and of one random
generator per row, so that a row of a batch depends neither on the other rows nor on the number of hosts. `CausalLM`,
`Replies` and `PrefixLM` are here, `MaskedLM` in lm/data/masked.py, `SpanCorruption` and `UL2` in lm/data/denoise.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from lm.text.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
RowRng = Callable[[int], np.random.Generator]  # row i -> its random generator, in its first state at each call


class Rows(NamedTuple):
    """R rows of T + 1 tokens, all [R, T + 1] int32. `documents` numbers the documents of a row from 1 in order, of
    preference pairs each side: 2 k - 1 is chosen and 2 k rejected. `segments` is what each token attends within: its
    document, or 1 throughout the row. `loss` is 1 for tokens that carry loss: in conversations the assistant's, in
    other documents all. All three are 0 for padding. `values` float32, of the same shape or [1, 1], is the number that
    a pair has, its margin for instance (lm/data/preferences.py)."""

    tokens: np.ndarray
    documents: np.ndarray
    segments: np.ndarray
    loss: np.ndarray
    values: np.ndarray = np.zeros((1, 1), np.float32)

    @classmethod
    def empty(cls, rows: int, width: int) -> "Rows":
        """Rows of padding."""
        tokens, documents, segments, loss = (np.zeros((rows, width), np.int32) for _ in range(4))
        return cls(tokens, documents, segments, loss, np.zeros((rows, width), np.float32))


class ModelTraits(Protocol):
    """The properties of a model on which an objective depends; a ModelConfig has them."""

    @property
    def causal(self) -> bool: ...

    @property
    def has_encoder(self) -> bool: ...

    @property
    def token_types(self) -> int: ...

    @property
    def output(self) -> "OutputTraits": ...


class OutputTraits(Protocol):
    """The properties of a model's output on which an objective depends; an Output has them."""

    @property
    def next_sentence(self) -> bool: ...

    def logit_count(self, vocab: int) -> int: ...


@dataclass(frozen=True, eq=False)
class ObjectiveContext:
    """What an objective depends on besides the rows: the shape of a batch, and the tokenizer's ids.

    Args:
      seq_len: T, the inputs of a row.
      vocab: the tokenizer's ids.
      bos, eos, mask: control ids, None where the tokenizer has none.
      encoder: whether the model has an encoder, which then reads the inputs.
      sentinel: the first sentinel, T5's <extra_id_0>; None where the tokenizer has none.
      special: [V] bool, the ids that decode to no text.
      word_starts: [V] bool, the ids that begin a word.
      cls, sep: the ids that begin a pair of texts and end each of them.
      pairs: P, the most preference pairs in a row.
    """

    seq_len: int = 0
    vocab: int = 0
    bos: int | None = None
    eos: int | None = None
    mask: int | None = None
    encoder: bool = False
    sentinel: int | None = None
    special: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    word_starts: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    cls: int | None = None
    sep: int | None = None
    pairs: int = 0


def objective_context(tokenizer: Tokenizer, seq_len: int, encoder: bool = False) -> ObjectiveContext:
    """The context of rows of `seq_len` inputs from `tokenizer`. The sentinels are T5's, <extra_id_0> and the ids below
    it; bos and eos stand in for a missing cls and sep."""
    size, named = tokenizer.vocab_size, {name: id for id, name in tokenizer.controls.items()}
    special = np.array([id in tokenizer.controls for id in range(size)])
    starts = np.array([tokenizer.bytes_of(id)[:1].isspace() for id in range(size)])
    return ObjectiveContext(
        seq_len,
        size,
        tokenizer.bos,
        tokenizer.eos,
        tokenizer.mask,
        encoder,
        named.get("<extra_id_0>"),
        special,
        starts | special,
        tokenizer.bos if tokenizer.cls is None else tokenizer.cls,
        tokenizer.eos if tokenizer.sep is None else tokenizer.sep,
    )


NO_CONTEXT = ObjectiveContext()  # for an objective that depends on the rows alone


def default_row_rng(row: int) -> np.random.Generator:
    """Generators for rows outside training, seeded by the row's index."""
    return np.random.default_rng(row)


@dataclass(frozen=True)
class Objective:
    """Rows to batches. `target_name` names what one loss belongs to; `measures` are the held-out measures: bits per
    byte only where every token of the text is predicted from those before it; `prefix` says whether a decoder reads
    what it continues in both directions. `reads` is the kind of the sources that it is for. With `reads_row_pairs`,
    `batch` reads 2R rows to make R: R rows, then for each of them another row of the same source."""

    target_name: ClassVar[str] = "token"
    prefix: ClassVar[bool] = False
    reads: ClassVar[str] = "texts"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "accuracy")

    @property
    def reads_row_pairs(self) -> bool:
        return False

    @property
    def row_copies(self) -> int:
        """In how many rows of a batch, side by side, each row of the data is."""
        return 1

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        """The batch of `rows`; `row_rng` gives each its own random generator.

        Returns:
          tokens, targets, segment_ids (1.., 0 padding), positions (from 0 in each segment), all int32, and weights
          float32 (0 where there is no target), each [R, T]. Some objectives add: prefix [R, T] bool, the tokens that
          their whole segment may attend to; encoder_tokens and encoder_segment_ids [R, S] int32; token_types [R, T]
          int32, with next_sentence [R] int32 (0: the second text follows the first) and next_sentence_weights [R]
          float32.
        """
        raise NotImplementedError

    def row_tokens(self, context: ObjectiveContext) -> int:
        """Tokens of text in a row of context.seq_len inputs; the packing adds one. Raises ValueError where too few
        fit."""
        return context.seq_len

    def lengths(self, context: ObjectiveContext) -> tuple[int, int]:
        """S and T, the tokens of a row that the encoder reads (0 where there is none) and those with outputs: the
        widths of a batch's arrays."""
        return 0, context.seq_len

    def extra_tokens(self, context: ObjectiveContext) -> int:
        """The ids that it needs beyond the tokenizer's."""
        return 0

    def markers(self, context: ObjectiveContext) -> dict[str, int]:
        """The names, in a text, of ids beyond the tokenizer's that stand for what is to be filled in."""
        return {}

    def check(self, model: ModelTraits) -> None:
        """Raises ValueError where `model` cannot be trained on it."""
        raise NotImplementedError


@dataclass(frozen=True)
class CausalLM(Objective):
    """Predict each token of a document from those before it. A document's last token (its eos) has no target."""

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "bits_per_byte")

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        current, next_ = rows.documents[:, :-1], rows.documents[:, 1:]
        segments = rows.segments[:, :-1]
        return {
            "tokens": rows.tokens[:, :-1].astype(np.int32),
            "targets": rows.tokens[:, 1:].astype(np.int32),
            "weights": ((current > 0) & (current == next_)).astype(np.float32),
            "segment_ids": segments.astype(np.int32),
            "positions": positions(segments),
        }

    def check(self, model: ModelTraits) -> None:
        check_decoder(self, model)


@dataclass(frozen=True)
class Replies(CausalLM):
    """Predict the tokens that carry loss from those before them: of conversations the assistant's, of texts all."""

    target_name: ClassVar[str] = "assistant token"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "accuracy")

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        batch = super().batch(rows)
        return {**batch, "weights": batch["weights"] * (rows.loss[:, 1:] > 0)}


@dataclass(frozen=True)
class PrefixLM(Objective):
    """Attend to a prefix of each segment in both directions, and predict the rest token by token (1910.10683, section
    3.2.1). The prefix's length is uniform from 1 to all but the last token; no token inside it is a target."""

    target_name: ClassVar[str] = "token after the prefix"
    prefix: ClassVar[bool] = True

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "accuracy")

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        batch = CausalLM().batch(rows)
        lengths = np.stack([self._lengths(s, row_rng(i)) for i, s in enumerate(rows.segments)])[:, :-1]
        position = batch["positions"]
        batch["prefix"] = (position < lengths) & (batch["segment_ids"] > 0)
        batch["weights"] = batch["weights"] * (position >= lengths - 1)  # the prefix's last token predicts the next
        return batch

    @staticmethod
    def _lengths(segments: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """[T + 1] the length of the prefix of each token's segment."""
        _, which, counts = np.unique(segments, return_inverse=True, return_counts=True)
        return (1 + random.integers(np.maximum(counts - 1, 1)))[which]

    def check(self, model: ModelTraits) -> None:
        check_decoder(self, model)


def check_logits(objective: Objective, model: ModelTraits) -> None:
    """Raises ValueError for a model without logits over the vocabulary."""
    if not model.output.logit_count(1):
        name, output = type(objective).__name__, type(model.output).__name__
        raise ValueError(f"{name} predicts tokens, and model.output={output} has no logits: set model.output=Output()")


def check_decoder(objective: Objective, model: ModelTraits) -> None:
    """Raises ValueError where `model` does not predict each token from those before it."""
    check_logits(objective, model)
    name = type(objective).__name__
    if model.has_encoder:
        raise ValueError(
            f"{name} trains a decoder alone, and this model has an encoder: take SpanCorruption() or UL2(), or set "
            "model.encoder_layers=0"
        )
    if not model.causal:
        raise ValueError(
            f"{name} predicts the next token, which a model with causal=False can see: take MaskedLM(), or causal=True"
        )


def positions(segments: np.ndarray) -> np.ndarray:
    """[R, T] int32: the position of each token in its segment, from 0."""
    index = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    starts = np.zeros_like(index)
    starts[:, 1:] = np.where(segments[:, 1:] != segments[:, :-1], index[:, 1:], 0)
    return index - np.maximum.accumulate(starts, axis=1)


def padded(batch: Batch, rows: int) -> Batch:
    """`batch` with rows of padding (zeros: no segment, no weight) up to `rows`."""
    return {
        name: np.pad(array, ((0, rows - len(array)), *((0, 0),) * (array.ndim - 1))) for name, array in batch.items()
    }
