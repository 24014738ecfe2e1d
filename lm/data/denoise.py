"""Denoising: spans of a row are removed, and the model predicts them (T5, 1910.10683; UL2, 2205.05131).

The inputs are the row with one sentinel in place of each span; the targets are each sentinel followed by its span, then
eos. The encoder of an encoder-decoder reads the inputs, and its decoder the targets; a decoder alone reads the inputs
as a prefix, then the targets. As in T5 a row is one text: its documents are concatenated, and a span may cross from one
to the next.
"""

import functools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from lm.bounds import Bounds, Count, Share
from lm.data.objective import (
    NO_CONTEXT,
    Batch,
    ModelTraits,
    Objective,
    ObjectiveContext,
    RowRng,
    Rows,
    check_logits,
    default_row_rng,
)

DECODER_START = 0  # T5's


@dataclass(frozen=True)
class Denoiser:
    """How a row is corrupted: a fraction `rate` of its tokens is removed, in spans of `mean_length` tokens on average
    (0: one span at the end); `mode` is the index of the mode token before the inputs (-1: none)."""

    rate: float = 0.15
    mean_length: float = 3.0
    mode: int = -1

    def counts(self, length: int) -> tuple[int, int]:
        """How many of `length` tokens are removed, at least 1 and not all, and in how many spans."""
        noise = min(max(round(length * self.rate), 1), length - 1)
        spans = round(noise / self.mean_length) if self.mean_length else 1
        return noise, min(max(spans, 1), length - noise, noise)

    def lengths(self, length: int) -> tuple[int, int]:
        """The lengths of the inputs and of the targets of a row of `length` tokens, with sentinels, eos and mode."""
        noise, spans = self.counts(length)
        return length - noise + spans + 1 + (self.mode >= 0), noise + spans + 1

    def mask(self, length: int, random: np.random.Generator) -> np.ndarray:
        """[length] bool, True for the tokens removed: kept and removed spans alternate from a kept one on, and the
        lengths of both kinds are random partitions, all equally likely."""
        noise, spans = self.counts(length)
        kept, removed = _partition(length - noise, spans, random), _partition(noise, spans, random)
        return np.repeat(np.tile([False, True], spans), np.stack([kept, removed], axis=1).ravel())


def _partition(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """[parts] lengths, each at least 1, that sum to `total`."""
    cuts = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(tokens: np.ndarray, noise: np.ndarray, sentinel: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """The inputs, with `sentinel`, `sentinel` - 1, … in place of the spans of `noise`, and the targets, with them in
    place of the spans between; `end` after both."""
    inputs, targets = (np.append(_replace_spans(tokens, mask, sentinel), end) for mask in (noise, ~noise))
    return inputs, targets


def _replace_spans(tokens: np.ndarray, mask: np.ndarray, sentinel: int) -> np.ndarray:
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    return np.where(starts, sentinel + 1 - np.cumsum(starts), tokens)[starts | ~mask]


@functools.lru_cache(maxsize=64)
def max_row_tokens(denoisers: tuple[Denoiser, ...], seq_len: int, encoder: bool) -> int:
    """The most tokens of text whose corrupted form fits: the inputs in `seq_len`, or for a decoder alone inputs and
    targets together (less one, as the targets are shifted by one). Raises ValueError where none fit."""

    def fits(length: int) -> bool:
        pairs = [d.lengths(length) for d in denoisers]
        return all((i if encoder else i + t - 1) <= seq_len for i, t in pairs)

    length = 1
    while fits(length + 1):
        length += 1
    if length < 2:
        raise ValueError(f"seq_len={seq_len}: no corrupted row fits in so few tokens, take at least 16")
    return length


@dataclass(frozen=True)
class _Denoising(Objective):
    """The part common to SpanCorruption and UL2: each row is corrupted by one of `denoisers`."""

    sentinels: Count = 100

    target_name: ClassVar[str] = "target token"
    prefix: ClassVar[bool] = True

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """The denoisers of a row, all equally likely."""
        raise NotImplementedError

    def row_tokens(self, context: ObjectiveContext) -> int:
        length = max_row_tokens(self.denoisers, context.seq_len, context.encoder)
        spans = max(d.counts(length)[1] for d in self.denoisers)
        needed = spans + (context.eos is None)  # without eos the last sentinel is the end
        if needed > self.sentinels:
            raise ValueError(
                f"a row of {length} tokens has up to {spans} spans and sentinels={self.sentinels}: "
                f"set sentinels={needed} in the objective, or a smaller seq_len"
            )
        return length

    def lengths(self, context: ObjectiveContext) -> tuple[int, int]:
        if not context.encoder:
            return super().lengths(context)
        length = max_row_tokens(self.denoisers, context.seq_len, True)
        return context.seq_len, max(d.lengths(length)[1] for d in self.denoisers)

    def extra_tokens(self, context: ObjectiveContext) -> int:
        modes = len({d.mode for d in self.denoisers if d.mode >= 0})
        return modes + (self.sentinels if context.sentinel is None else 0)

    def markers(self, context: ObjectiveContext) -> dict[str, int]:
        if context.sentinel is not None:
            return {}
        return {f"<extra_id_{k}>": sentinel_id(self.sentinels, context) - k for k in range(self.sentinels)}

    def check(self, model: ModelTraits) -> None:
        check_logits(self, model)
        if not model.has_encoder and not model.causal:
            raise ValueError(
                f"{type(self).__name__} needs a decoder, and a model with causal=False and no encoder has none: "
                "set encoder_layers, or causal=True, or take MaskedLM()"
            )

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        read = zip(rows.tokens[:, :-1], rows.documents[:, :-1], strict=True)
        pairs = [self._pair(tokens, documents, context, row_rng(i)) for i, (tokens, documents) in enumerate(read)]
        if not context.encoder:
            return _prefix_batch(pairs, context.seq_len)
        self.row_tokens(context)  # raises where there are too few sentinels
        return _encoder_decoder_batch(pairs, *self.lengths(context))

    def _pair(
        self, tokens: np.ndarray, documents: np.ndarray, context: ObjectiveContext, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The inputs and the targets of one row; both empty where it has fewer than two tokens."""
        tokens = tokens[documents > 0]
        if len(tokens) < 2:
            return tokens[:0], tokens[:0]
        denoiser = self.denoisers[random.integers(len(self.denoisers))]
        noise = denoiser.mask(len(tokens), random)
        inputs, targets = corrupt(tokens, noise, sentinel_id(self.sentinels, context), end_id(self.sentinels, context))
        mode = [mode_id(denoiser.mode, self.sentinels, context)] if denoiser.mode >= 0 else []
        return np.concatenate([mode, inputs]).astype(np.int32), targets.astype(np.int32)


@dataclass(frozen=True)
class SpanCorruption(_Denoising):
    """Predict the spans removed from the text: a fraction `rate` of its tokens, in spans of `mean_length` tokens
    (1910.10683, section 3.1.4). The sentinels are the `sentinels` ids after the tokenizer's, the first sentinel the
    highest of them, as T5's <extra_id_0>. Raises ValueError for a rate, length or number out of range."""

    rate: Share = 0.15
    mean_length: Annotated[float, Bounds(1)] = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or self.mean_length < 1 or self.sentinels < 1:
            raise ValueError(
                f"objective rate={self.rate}, mean_length={self.mean_length}, sentinels={self.sentinels}: "
                "expected a fraction between 0 and 1, and at least 1 and 1"
            )

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        return (Denoiser(self.rate, self.mean_length),)


@dataclass(frozen=True)
class UL2(_Denoising):
    """A mixture of denoisers, one drawn for each row: regular, sequential (one span, at the end) and extreme ones, the
    seven of Table 1 of 2205.05131, equally likely. A mode token ([R], [S], [X]: the ids after the sentinels) before the
    inputs names the kind. Raises ValueError for fewer than one sentinel."""

    def __post_init__(self) -> None:
        if self.sentinels < 1:
            raise ValueError(f"{type(self).__name__}.sentinels={self.sentinels}: expected at least 1")

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        return TABLE_1


R, S, X = 0, 1, 2
TABLE_1 = (
    Denoiser(0.15, 3.0, R),
    Denoiser(0.15, 8.0, R),
    Denoiser(0.25, 0.0, S),
    Denoiser(0.5, 3.0, X),
    Denoiser(0.5, 8.0, X),
    Denoiser(0.15, 64.0, X),
    Denoiser(0.5, 64.0, X),
)


def sentinel_id(sentinels: int, context: ObjectiveContext) -> int:
    """The id of the first sentinel; the next is one below it."""
    return context.vocab + sentinels - 1 if context.sentinel is None else context.sentinel


def mode_id(mode: int, sentinels: int, context: ObjectiveContext) -> int:
    """The id of the mode token R, S or X: after the tokenizer's ids and the sentinels."""
    return context.vocab + mode + (sentinels if context.sentinel is None else 0)


def end_id(sentinels: int, context: ObjectiveContext) -> int:
    """The id that ends inputs and targets: eos, or the last sentinel where the tokenizer has no eos."""
    return sentinel_id(sentinels, context) - sentinels + 1 if context.eos is None else context.eos


def _right_pad(sequences: list[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The sequences as one array [R, width], padded with zeros, and the mask of what is no padding."""
    lengths = np.array([len(s) for s in sequences])
    mask = np.arange(width) < lengths[:, None]
    out = np.zeros(mask.shape, np.int32)
    out[mask] = np.concatenate(sequences)
    return out, mask


def _encoder_decoder_batch(pairs: list[tuple[np.ndarray, np.ndarray]], encoder_width: int, width: int) -> Batch:
    """The encoder reads the inputs, the decoder the targets shifted right by one, after DECODER_START."""
    encoder, encoder_mask = _right_pad([inputs for inputs, _ in pairs], encoder_width)
    targets, mask = _right_pad([targets for _, targets in pairs], width)
    tokens = np.where(mask, np.pad(targets, ((0, 0), (1, 0)), constant_values=DECODER_START)[:, :-1], 0)
    position = np.broadcast_to(np.arange(width, dtype=np.int32), mask.shape)
    return {
        "encoder_tokens": encoder,
        "encoder_segment_ids": encoder_mask.astype(np.int32),
        "tokens": tokens.astype(np.int32),
        "targets": targets,
        "weights": mask.astype(np.float32),
        "segment_ids": mask.astype(np.int32),
        "positions": np.where(mask, position, 0),
    }


def _prefix_batch(pairs: list[tuple[np.ndarray, np.ndarray]], width: int) -> Batch:
    """A decoder alone reads the inputs as a bidirectional prefix, then the targets."""
    sequences, mask = _right_pad([np.concatenate(pair) for pair in pairs], width + 1)
    inputs = np.array([len(inputs) for inputs, _ in pairs])[:, None]
    position = np.broadcast_to(np.arange(width, dtype=np.int32), (len(pairs), width))
    mask = mask[:, 1:]
    return {
        "tokens": np.where(mask, sequences[:, :-1], 0),
        "targets": sequences[:, 1:],
        "weights": (mask & (position >= inputs - 1)).astype(np.float32),
        "segment_ids": mask.astype(np.int32),
        "positions": np.where(mask, position, 0),
        "prefix": mask & (position < inputs),
    }
