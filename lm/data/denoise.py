"""Denoising: spans of a row are taken out, and the model writes them (T5, 1910.10683; UL2, 2205.05131).

A corrupted row has one sentinel in place of each span; the targets are each sentinel with the span that it stands for,
then the end. An encoder-decoder reads the one and writes the other; a decoder alone reads the one as a prefix and goes
on with the other. As in T5 a row is one text: the documents in it follow each other, and a span may cross their border.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lm.data.objective import ANY, Batch, Chance, Objective, Reads, Rows, Setting, unseeded

START = 0  # what T5's decoder reads first


@dataclass(frozen=True)
class Denoiser:
    """How a row is corrupted: a share `rate` of it, in spans of `mean_length` tokens on average (0: one span at the
    end); `mode`, the number of the mode token put before the inputs (-1: none)."""

    rate: float = 0.15
    mean_length: float = 3.0
    mode: int = -1

    def counts(self, length: int) -> tuple[int, int]:
        """The tokens that are taken out of `length`, at least 1 and not all, and in how many spans."""
        noise = min(max(round(length * self.rate), 1), length - 1)
        spans = round(noise / self.mean_length) if self.mean_length else 1
        return noise, min(max(spans, 1), length - noise, noise)

    def lengths(self, length: int) -> tuple[int, int]:
        """The tokens of the inputs and of the targets that `length` tokens become, sentinels, end and mode counted."""
        noise, spans = self.counts(length)
        return length - noise + spans + 1 + (self.mode >= 0), noise + spans + 1

    def mask(self, length: int, random: np.random.Generator) -> np.ndarray:
        """[length] bool, what is taken out: kept and taken spans alternate from a kept one on, and both kinds are cut
        at random places (all partitions alike likely)."""
        noise, spans = self.counts(length)
        kept, taken = _partition(length - noise, spans, random), _partition(noise, spans, random)
        return np.repeat(np.tile([False, True], spans), np.stack([kept, taken], axis=1).ravel())


def _partition(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """[parts] lengths, each at least 1, that sum to `total`."""
    cuts = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(tokens: np.ndarray, noise: np.ndarray, sentinel: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """The inputs, with `sentinel`, `sentinel` - 1, … where `noise` is, and the targets, with them where it is not."""
    inputs, targets = (np.append(_marked(tokens, hidden, sentinel), end) for hidden in (noise, ~noise))
    return inputs, targets


def _marked(tokens: np.ndarray, hidden: np.ndarray, sentinel: int) -> np.ndarray:
    starts = hidden & ~np.concatenate([[False], hidden[:-1]])
    return np.where(starts, sentinel + 1 - np.cumsum(starts), tokens)[starts | ~hidden]


@functools.lru_cache(maxsize=64)
def longest(denoisers: tuple[Denoiser, ...], seq_len: int, encoder: bool) -> int:
    """The most tokens that fit, once corrupted: their inputs in `seq_len`, or in a decoder alone both (less one, as the
    targets are one later)."""

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
    """What SpanCorruption and UL2 share: each row is corrupted by one of `denoisers`."""

    sentinels: int = 100

    asked: ClassVar[str] = "target token"

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """The ways to corrupt a row, each as likely."""
        raise NotImplementedError

    def row_tokens(self, setting: Setting) -> int:
        length = longest(self.denoisers, setting.seq_len, setting.encoder)
        spans = max(d.counts(length)[1] for d in self.denoisers)
        needed = spans + (setting.eos is None)  # without eos the last sentinel is the end
        if needed > self.sentinels:
            raise ValueError(
                f"a row of {length} tokens has up to {spans} spans and objective.sentinels={self.sentinels}: "
                f"set objective.sentinels={needed}, or a smaller seq_len"
            )
        return length

    def extra_tokens(self, setting: Setting) -> int:
        modes = len({d.mode for d in self.denoisers if d.mode >= 0})
        return modes + (self.sentinels if setting.sentinel is None else 0)

    def check(self, model: Reads) -> None:
        if not model.encoder_layers and not model.causal:
            raise ValueError(
                f"{type(self).__name__} needs a model that writes, and model.causal=False without an encoder does not: "
                "set encoder_layers, or causal=True, or take MaskedLM()"
            )

    def batch(self, rows: Rows, setting: Setting = ANY, chance: Chance = unseeded) -> Batch:
        pairs = [self._pair(t[:-1], d[:-1], setting, chance(i)) for i, (t, d, _) in enumerate(zip(*rows, strict=True))]
        if not setting.encoder:
            return _as_prefix(pairs, setting.seq_len)
        length = self.row_tokens(setting)
        return _as_pairs(pairs, setting.seq_len, max(d.lengths(length)[1] for d in self.denoisers))

    def _pair(
        self, tokens: np.ndarray, documents: np.ndarray, setting: Setting, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The inputs and the targets of one row, none where it has not two tokens."""
        tokens = tokens[documents > 0]
        if len(tokens) < 2:
            return tokens[:0], tokens[:0]
        denoiser = self.denoisers[random.integers(len(self.denoisers))]
        noise = denoiser.mask(len(tokens), random)
        inputs, targets = corrupt(tokens, noise, sentinel(self.sentinels, setting), end_id(self.sentinels, setting))
        mode = [mode_id(denoiser.mode, self.sentinels, setting)] if denoiser.mode >= 0 else []
        return np.concatenate([mode, inputs]).astype(np.int32), targets.astype(np.int32)


@dataclass(frozen=True)
class SpanCorruption(_Denoising):
    """Write the spans that were taken out of the text: a share `rate` of its tokens, in spans of `mean_length` tokens
    (1910.10683, section 3.1.4). Sentinels are the ids after the tokenizer's, the first sentinel the last of them, as
    T5's <extra_id_0>."""

    rate: float = 0.15
    mean_length: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or self.mean_length < 1 or self.sentinels < 1:
            raise ValueError(
                f"objective rate={self.rate}, mean_length={self.mean_length}, sentinels={self.sentinels}: "
                "expected a share between 0 and 1, and at least 1 and 1"
            )

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        return (Denoiser(self.rate, self.mean_length),)


@dataclass(frozen=True)
class UL2(_Denoising):
    """A mixture of denoisers, one drawn for each row: regular, sequential (one span, at the end) and extreme ones, as
    in Table 1 of 2205.05131, each of its seven as likely. A mode token ([R], [S], [X]: the ids after the sentinels)
    before the inputs says which kind it is."""

    def __post_init__(self) -> None:
        if self.sentinels < 1:
            raise ValueError(f"objective.sentinels={self.sentinels}: expected at least 1")

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


def sentinel(sentinels: int, setting: Setting) -> int:
    """The id of the first sentinel; the next is one below it."""
    return setting.vocab + sentinels - 1 if setting.sentinel is None else setting.sentinel


def mode_id(mode: int, sentinels: int, setting: Setting) -> int:
    """The id of the mode token R, S or X: after the tokenizer's ids and the sentinels."""
    return setting.vocab + mode + (sentinels if setting.sentinel is None else 0)


def end_id(sentinels: int, setting: Setting) -> int:
    """What ends inputs and targets: eos, or the last sentinel for a tokenizer that has none."""
    return sentinel(sentinels, setting) - sentinels + 1 if setting.eos is None else setting.eos


def _filled(sequences: list[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The sequences as one array [R, width], zeros after each, and where they are (bool)."""
    lengths = np.array([len(s) for s in sequences])
    there = np.arange(width) < lengths[:, None]
    out = np.zeros(there.shape, np.int32)
    out[there] = np.concatenate(sequences)
    return out, there


def _as_pairs(pairs: list[tuple[np.ndarray, np.ndarray]], encoder_width: int, width: int) -> Batch:
    """An encoder-decoder's batch: the decoder reads the targets one late, after START."""
    encoder, encoder_there = _filled([inputs for inputs, _ in pairs], encoder_width)
    targets, there = _filled([targets for _, targets in pairs], width)
    tokens = np.where(there, np.pad(targets, ((0, 0), (1, 0)), constant_values=START)[:, :-1], 0)
    place = np.broadcast_to(np.arange(width, dtype=np.int32), there.shape)
    return {
        "encoder_tokens": encoder,
        "encoder_segment_ids": encoder_there.astype(np.int32),
        "tokens": tokens.astype(np.int32),
        "targets": targets,
        "weights": there.astype(np.float32),
        "segment_ids": there.astype(np.int32),
        "positions": np.where(there, place, 0),
    }


def _as_prefix(pairs: list[tuple[np.ndarray, np.ndarray]], width: int) -> Batch:
    """A decoder's batch: the inputs, seen whole, and the targets after them."""
    whole, there = _filled([np.concatenate(pair) for pair in pairs], width + 1)
    inputs = np.array([len(inputs) for inputs, _ in pairs])[:, None]
    place = np.broadcast_to(np.arange(width, dtype=np.int32), (len(pairs), width))
    asked = there[:, 1:]
    return {
        "tokens": np.where(asked, whole[:, :-1], 0),
        "targets": whole[:, 1:],
        "weights": (asked & (place >= inputs - 1)).astype(np.float32),
        "segment_ids": asked.astype(np.int32),
        "positions": np.where(asked, place, 0),
        "prefix": asked & (place < inputs),
    }
