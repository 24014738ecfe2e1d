"""Mixtures: which source each row of each batch comes from, as a pure function of (seed, step).

Step u of B rows takes n_s(u) rows of source s, where n sums to B and has the mean B * weight_s(u). The rows of a source
are taken in order, so those of step u start at the sum of n_s over the steps before, which is cheap for any u.
"""

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# The sources that an experiment may have: lm/value.py reads back the classes that are imported.
from lm.bounds import Natural, NonNegative
from lm.data import (  # noqa: F401
    captions,
    conversations,
    digits,
    preferences,
    prompts,
    records,
    repeats,
    reviews,
    shapes,
    stdlib,
    sums,
    talks,
)
from lm.data.pack import Chunk, Packing
from lm.data.random import generator
from lm.data.source import Source
from lm.text.tokenizer import SentencePieceSpec, TokenizerSpec
from lm.value import suggest

CHUNK_STEPS = 4096  # steps whose counts are computed together


@dataclass(frozen=True)
class Breakpoint:
    """The weights of a mixture at a step; they are linear between breakpoints."""

    step: Natural
    weights: dict[str, NonNegative]


@dataclass(frozen=True)
class Mixture:
    """Named sources and their weights (shares of the rows, up to a factor). With `breakpoints` the weights are
    piecewise linear in the step: `weights` at step 0, then each breakpoint's at its step, then constant. Raises
    ValueError for weights that do not fit the sources, or steps that do not ascend."""

    sources: dict[str, Source]
    weights: dict[str, NonNegative]
    breakpoints: tuple[Breakpoint, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a mixture needs at least one source")
        _check_weights("weights", self.weights, self.sources)
        for point in self.breakpoints:
            _check_weights(f"the weights at step {point.step}", point.weights, self.sources)
        steps = [point.step for point in self.breakpoints]
        if any(after <= before for before, after in zip([-1, *steps], steps, strict=False)):
            raise ValueError(f"the breakpoints' steps are {steps}: expected ascending steps, from 0 or later")

    def shares(self, steps: np.ndarray) -> np.ndarray:
        """[U, S]: the share of each source, in the order of `sources`, at each of `steps` [U]; they sum to 1."""
        points = self.breakpoints
        if not points or points[0].step > 0:
            points = (Breakpoint(0, self.weights), *points)
        at = [point.step for point in points]
        columns = [np.interp(steps, at, [float(point.weights[name]) for point in points]) for name in self.sources]
        weights = np.stack(columns, axis=-1)
        return weights / weights.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Data:
    """What a model is trained on: documents, how they become tokens, and how tokens become rows.

    `chat_template` (jinja) is that of conversations, saved with the tokenizer; "": the tokenizer's own."""

    mixture: Mixture
    tokenizer: TokenizerSpec = field(default_factory=SentencePieceSpec)
    packing: Packing = field(default_factory=Chunk)
    chat_template: str = ""


class MixtureSampler:
    """Which rows of which sources make the batch of each step: `batch_rows` of them, by systematic sampling.

    Raises ValueError for an empty batch."""

    def __init__(self, mixture: Mixture, batch_rows: int, seed: int):
        if batch_rows < 1:
            raise ValueError(f"a batch of {batch_rows} rows: expected at least 1")
        self._mixture, self._batch_rows, self._seed = mixture, batch_rows, seed
        self._totals = [np.zeros(len(mixture.sources), np.int64)]  # rows used before each chunk of steps
        self._lock = threading.Lock()
        self._chunk = functools.lru_cache(maxsize=8)(self._compute_counts)

    def _compute_counts(self, chunk: int) -> np.ndarray:
        """[CHUNK_STEPS, S] counts by systematic sampling: the boundaries B * (cumulative shares) are all shifted by one
        uniform r in [0, 1) and rounded down, so that each count is unbiased, at least 0 and off by less than 1."""
        steps = chunk * CHUNK_STEPS + np.arange(CHUNK_STEPS)
        bounds = self._batch_rows * np.cumsum(self._mixture.shares(steps), axis=1)
        bounds = np.minimum(bounds, self._batch_rows)  # rounding above it could make the last count negative
        bounds[:, -1] = self._batch_rows
        shifted = np.floor(bounds + generator(self._seed, "mixture", chunk).random((CHUNK_STEPS, 1))).astype(np.int64)
        return np.diff(shifted, axis=1, prepend=0)

    def counts(self, step: int) -> np.ndarray:
        """[S]: the rows of each source in the batch of `step`; they sum to B."""
        return self._chunk(step // CHUNK_STEPS)[step % CHUNK_STEPS]

    def counts_before(self, step: int) -> np.ndarray:
        """[S]: the rows of each source in the batches of all steps before `step`."""
        chunk, rest = divmod(step, CHUNK_STEPS)
        with self._lock:
            while len(self._totals) <= chunk:
                self._totals.append(self._totals[-1] + self._compute_counts(len(self._totals) - 1).sum(axis=0))
        return self._totals[chunk] + self._chunk(chunk)[:rest].sum(axis=0)

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The source [B], and the number within that source [B], of each row of the batch of `step`, in random
        order."""
        counts = self.counts(step)
        source = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(self._batch_rows) - np.repeat(np.cumsum(counts) - counts, counts)
        order = generator(self._seed, "batch", step).permutation(self._batch_rows)
        return source[order], (self.counts_before(step)[source] + nth)[order]


def _check_weights(what: str, weights: Mapping[str, float], sources: Mapping[str, Source]) -> None:
    for name, weight in weights.items():
        if name not in sources:
            raise ValueError(f"{what} name {name!r}, which is no source: {suggest(name, sources)}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{what} give {name} {weight}: expected a number, at least 0")
    if missing := [name for name in sources if name not in weights]:
        raise ValueError(f"{what} have none for {', '.join(missing)}: give every source one (0 leaves it out)")
    if not any(weights.values()):
        raise ValueError(f"{what} are all zero: give at least one source more than 0")
