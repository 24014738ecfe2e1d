"""Mixtures: which source each row of each batch comes from, as a pure function of (seed, step).

Step u of B rows takes n_s(u) rows of source s, where n sums to B and has the mean B * weight_s(u); the rows of a source
are taken in their order, so those of step u start at the sum of n_s over the steps before, a sum that is cheap to form
for any u.
"""

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# Every source that an experiment may name: reading one back (lm/value.py) finds the classes that are imported.
from lm.data import records, stdlib  # noqa: F401
from lm.data.pack import Chunk, Packing
from lm.data.random import generator
from lm.data.source import Source
from lm.text.tokenizer import SentencePieceSpec, TokenizerSpec
from lm.value import suggest

CHUNK_STEPS = 4096  # steps whose counts are worked out together


@dataclass(frozen=True)
class Knot:
    """The weights at a step; between knots they change linearly."""

    step: int
    weights: dict[str, float]


@dataclass(frozen=True)
class Mixture:
    """Named sources and their weights (shares of the rows, of any sum). With `knots` the weights go linearly from
    `weights` at step 0 to each knot's at its step, and stay at the last."""

    sources: dict[str, Source]
    weights: dict[str, float]
    knots: tuple[Knot, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a mixture needs at least one source")
        _check_weights("weights", self.weights, self.sources)
        for knot in self.knots:
            _check_weights(f"the weights at step {knot.step}", knot.weights, self.sources)
        steps = [knot.step for knot in self.knots]
        if any(b <= a for a, b in zip([-1, *steps], steps, strict=False)):
            raise ValueError(f"the knots' steps are {steps}: expected them to rise, from 0 or later")

    def shares(self, steps: np.ndarray) -> np.ndarray:
        """[U, S]: the share of each source, in the order of `sources`, at each of the steps [U]; rows sum to 1."""
        knots = self.knots if self.knots and self.knots[0].step == 0 else (Knot(0, self.weights), *self.knots)
        at = [knot.step for knot in knots]
        columns = [np.interp(steps, at, [float(knot.weights[name]) for knot in knots]) for name in self.sources]
        weights = np.stack(columns, axis=-1)
        return weights / weights.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Data:
    """What a model is trained on: documents, how they become tokens, how tokens become rows."""

    mixture: Mixture
    tokenizer: TokenizerSpec = field(default_factory=SentencePieceSpec)
    packing: Packing = field(default_factory=Chunk)


class Apportionment:
    """How many rows, and which, each source gives to each step of `batch_rows` rows."""

    def __init__(self, mixture: Mixture, batch_rows: int, seed: int):
        if batch_rows < 1:
            raise ValueError(f"a batch of {batch_rows} rows: expected at least 1")
        self._mixture, self._batch_rows, self._seed = mixture, batch_rows, seed
        self._before = [np.zeros(len(mixture.sources), np.int64)]  # rows used before each chunk of steps
        self._lock = threading.Lock()
        self._chunk = functools.lru_cache(maxsize=8)(self._work_out)

    def _work_out(self, chunk: int) -> np.ndarray:
        """[CHUNK_STEPS, S] counts: the boundaries B * (cumulative shares), all moved by one random r in [0, 1) and
        rounded down, so that each count is unbiased, at least 0 and off by less than 1 (systematic sampling)."""
        steps = chunk * CHUNK_STEPS + np.arange(CHUNK_STEPS)
        bounds = self._batch_rows * np.cumsum(self._mixture.shares(steps), axis=1)
        bounds = np.minimum(bounds, self._batch_rows)  # a rounding error above it could make the last count negative
        bounds[:, -1] = self._batch_rows
        moved = np.floor(bounds + generator(self._seed, "mixture", chunk).random((CHUNK_STEPS, 1))).astype(np.int64)
        return np.diff(moved, axis=1, prepend=0)

    def counts(self, step: int) -> np.ndarray:
        """[S]: the rows that each source gives to `step`; they sum to the batch."""
        return self._chunk(step // CHUNK_STEPS)[step % CHUNK_STEPS]

    def before(self, step: int) -> np.ndarray:
        """[S]: the rows that each source has given to the steps before `step`."""
        chunk, rest = divmod(step, CHUNK_STEPS)
        with self._lock:
            while len(self._before) <= chunk:
                self._before.append(self._before[-1] + self._work_out(len(self._before) - 1).sum(axis=0))
        return self._before[chunk] + self._chunk(chunk)[:rest].sum(axis=0)

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The source [B] and the number within the source [B] of each row of `step`'s batch, in random order."""
        counts = self.counts(step)
        source = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(self._batch_rows) - np.repeat(np.cumsum(counts) - counts, counts)
        order = generator(self._seed, "batch", step).permutation(self._batch_rows)
        return source[order], (self.before(step)[source] + nth)[order]


def _check_weights(what: str, weights: Mapping[str, float], sources: Mapping[str, Source]) -> None:
    for name, weight in weights.items():
        if name not in sources:
            raise ValueError(f"{what} name {name!r}, which is no source: {suggest(name, sources)}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{what} give {name} {weight}: expected a number, at least 0")
    if missing := [name for name in sources if name not in weights]:
        raise ValueError(f"{what} say nothing of {', '.join(missing)}: give every source one (0 leaves it out)")
    if not any(weights.values()):
        raise ValueError(f"{what} are all zero: give at least one source more than 0")
