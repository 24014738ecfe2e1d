"""Objectives: what a model is asked about a row of tokens.

A packing gives rows of tokens; an objective turns them into the batch of inputs and targets that a model reads. An
objective is a pure function of the rows, of what it meets (`Setting`: the length of a row, the tokenizer's ids), and of
one random generator a row, so that a batch never depends on which other rows are in it, nor on the hosts. `CausalLM`
and `PrefixLM` are here, `MaskedLM` in lm/data/masked.py, `SpanCorruption` and `UL2` in lm/data/denoise.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from lm.text.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
Chance = Callable[[int], np.random.Generator]  # the generator that belongs to row i, always begun anew


class Rows(NamedTuple):
    """R rows of T + 1 tokens, all [R, T + 1] int32. `documents` numbers the documents of a row from 1 in their order, 0
    is padding; `segments` numbers what may attend to each other (the documents, or 1 for all)."""

    tokens: np.ndarray
    documents: np.ndarray
    segments: np.ndarray


class Reads(Protocol):
    """What an objective asks of a model before it meets it; a ModelConfig answers."""

    @property
    def causal(self) -> bool: ...

    @property
    def encoder_layers(self) -> int: ...

    @property
    def token_types(self) -> int: ...

    @property
    def output(self) -> "Answers": ...


class Answers(Protocol):
    """What an objective asks of a model's output; an Output answers."""

    @property
    def next_sentence(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Setting:
    """What an objective meets: rows of `seq_len` inputs, a tokenizer of `vocab` ids with `bos`, `eos`, `mask` and a
    first `sentinel` (None: it has none), where `special` [V] ids write nothing and `word_starts` [V] ids begin a word;
    whether the model has an `encoder`; and what begins a pair of texts and ends each, `cls` and `sep`."""

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


def setting_of(tokenizer: Tokenizer, seq_len: int, encoder: bool = False) -> Setting:
    """What `tokenizer` and the model's shape say to an objective. T5's <extra_id_0> is the first sentinel; those after
    it are the ids below it; bos and eos stand in for a cls and sep that it has not."""
    size, named = tokenizer.vocab_size, {name: id for id, name in tokenizer.controls.items()}
    special = np.array([id in tokenizer.controls for id in range(size)])
    starts = np.array([tokenizer.bytes_of(id)[:1].isspace() for id in range(size)])
    return Setting(
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


ANY = Setting()  # for an objective that needs to know nothing


def unseeded(row: int) -> np.random.Generator:
    """The chance of rows that have no number: looked at, not trained on."""
    return np.random.default_rng(row)


@dataclass(frozen=True)
class Objective:
    """Rows to batches. `asked` names what one loss is of; `measures` are the numbers it is told in: bits per byte only
    where every token of the text is predicted from those before it. With `in_pairs`, `batch` reads two rows for each
    that it makes: first the R rows, then another row of the same source for each of them."""

    asked: ClassVar[str] = "token"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "accuracy")

    @property
    def in_pairs(self) -> bool:
        return False

    def batch(self, rows: Rows, setting: Setting = ANY, chance: Chance = unseeded) -> Batch:
        """tokens, targets, segment_ids (1.., 0 padding), positions (from 0 in each segment), all int32, and weights
        float32 (0 where there is nothing to predict), each [R, T]. Some objectives add to it: prefix [R, T] bool, what
        all of its segment may see; encoder_tokens and encoder_segment_ids [R, S] int32; token_types [R, T] int32, with
        next_sentence [R] int32 (0: the second text follows the first) and its next_sentence_weights [R] float32."""
        raise NotImplementedError

    def row_tokens(self, setting: Setting) -> int:
        """Tokens of text that make a row of the setting's seq_len; the packing gives one more."""
        return setting.seq_len

    def extra_tokens(self, setting: Setting) -> int:
        """The ids that it needs after those of the tokenizer."""
        return 0

    def check(self, model: Reads) -> None:
        """Raises ValueError where it cannot be asked of `model`."""
        raise NotImplementedError


@dataclass(frozen=True)
class CausalLM(Objective):
    """Predict each token of a document from those before it. Nothing is asked at a document's last token (its eos)."""

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "bits_per_byte")

    def batch(self, rows: Rows, setting: Setting = ANY, chance: Chance = unseeded) -> Batch:
        here, next_ = rows.documents[:, :-1], rows.documents[:, 1:]
        segments = rows.segments[:, :-1]
        return {
            "tokens": rows.tokens[:, :-1].astype(np.int32),
            "targets": rows.tokens[:, 1:].astype(np.int32),
            "weights": ((here > 0) & (here == next_)).astype(np.float32),
            "segment_ids": segments.astype(np.int32),
            "positions": positions(segments),
        }

    def check(self, model: Reads) -> None:
        _check_decoder(self, model)


@dataclass(frozen=True)
class PrefixLM(Objective):
    """See the first part of each segment whole, and predict the rest token by token (1910.10683, section 3.2.1). The
    part's length is uniform from 1 to all but the last token; nothing is asked inside it."""

    asked: ClassVar[str] = "token after the prefix"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "accuracy")

    def batch(self, rows: Rows, setting: Setting = ANY, chance: Chance = unseeded) -> Batch:
        batch = CausalLM().batch(rows)
        lengths = np.stack([self._lengths(s, chance(i)) for i, s in enumerate(rows.segments)])[:, :-1]
        place = batch["positions"]
        batch["prefix"] = (place < lengths) & (batch["segment_ids"] > 0)
        batch["weights"] = batch["weights"] * (place >= lengths - 1)  # the prefix's last token asks for what follows
        return batch

    @staticmethod
    def _lengths(segments: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """[T + 1] the length of the prefix of each token's segment."""
        _, which, counts = np.unique(segments, return_inverse=True, return_counts=True)
        return (1 + random.integers(np.maximum(counts - 1, 1)))[which]

    def check(self, model: Reads) -> None:
        _check_decoder(self, model)


def _check_decoder(objective: Objective, model: Reads) -> None:
    name = type(objective).__name__
    if model.encoder_layers:
        raise ValueError(
            f"{name} asks a decoder alone, and model.encoder_layers={model.encoder_layers}: "
            "take SpanCorruption() or UL2(), or encoder_layers=0"
        )
    if not model.causal:
        raise ValueError(
            f"{name} asks for the next token, which a model with causal=False can see: take MaskedLM(), or causal=True"
        )


def positions(segments: np.ndarray) -> np.ndarray:
    """[R, T] int32: how far each token is from the start of its segment."""
    index = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    starts = np.zeros_like(index)
    starts[:, 1:] = np.where(segments[:, 1:] != segments[:, :-1], index[:, 1:], 0)
    return index - np.maximum.accumulate(starts, axis=1)


def padded(batch: Batch, rows: int) -> Batch:
    """`batch` with rows of padding (zeros: no segment, no weight) up to `rows`."""
    return {
        name: np.pad(array, ((0, rows - len(array)), *((0, 0),) * (array.ndim - 1))) for name, array in batch.items()
    }
