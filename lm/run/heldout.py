"""Evaluation on held-out data: a method's measures, by source."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from lm.data.loader import Batches
from lm.sharding.batches import place_batch
from lm.train.loop import steps_ahead
from lm.train.loss import Metrics
from lm.train.method import Batch, Learner, Sample
from lm.train.step import Evaluate

KEPT_BYTES = 32_000_000  # of held-out batches on the devices


class Kept:
    """The first held-out batches of each source on the devices, as far as they are small: what one evaluation has read
    and placed, the next one finds, of this run or of another with the same held-out rows."""

    def __init__(self) -> None:
        self._batches: dict[str, list[Any]] = {}
        self._bytes = 0

    def placed(self, source: str, batches_from: Callable[[int], Iterator[Batch]], mesh: Mesh) -> Iterator[Any]:
        """All batches of the source on the mesh; `batches_from` reads those from a number on."""
        kept = self._batches.setdefault(source, [])
        yield from kept
        for i, batch in enumerate(batches_from(len(kept)), len(kept)):
            placed, size = place_batch(batch, mesh), sum(array.nbytes for array in batch.values())
            if i == len(kept) and self._bytes + size <= KEPT_BYTES:
                self._bytes += size
                kept.append(placed)
            yield placed


@dataclass(frozen=True)
class HeldOut:
    """An evaluation of the held-out `data` of all sources, in batches of `rows`: `learner` has the measures, and
    `evaluate` is its compiled evaluation of a batch, over `mesh`. What was read is `kept`."""

    learner: Learner
    data: Batches
    evaluate: Evaluate
    mesh: Mesh
    rows: int
    kept: Kept = field(default_factory=Kept, kw_only=True)

    def measure(self, params: Any, frozen: Any, most_tokens: int = 0) -> dict[str, float]:
        """SOURCE/MEASURE -> value, and the mean over the sources of the first measure, under its name.

        At most `most_tokens` a source are read (0: all). A collective: all processes get the same values."""
        measures = self.by_source(params, frozen, most_tokens)
        first = next(name for values in measures.values() for name in values)
        mean = sum(values[first] for values in measures.values()) / len(measures)
        by_name = {f"{source}/{name}": x for source, values in measures.items() for name, x in values.items()}
        return by_name | {first: mean}

    def samples(self, params: Any, frozen: Any) -> Iterator[Sample]:
        """Samples that show what it measures, where it has any. A collective."""
        yield from ()

    def by_source(self, params: Any, frozen: Any, most_tokens: int = 0) -> dict[str, dict[str, float]]:
        """source -> its measures."""
        sums = {source: self._sums(params, frozen, most_tokens, source) for source in self.data.sources}
        return {source: self.learner.measure(total, self.data, source) for source, total in sums.items()}

    def _sums(self, params: Any, frozen: Any, most_tokens: int, source: str) -> dict[str, float]:
        """The sums of `Learner.evaluate` over the held-out batches of `source`."""
        sums: dict[str, float] = {}
        outstanding: deque[Metrics] = deque()
        ahead = steps_ahead()

        def read(most: int) -> None:
            while len(outstanding) > most:
                for name, x in jax.device_get(outstanding.popleft()).items():
                    sums[name] = sums.get(name, 0.0) + float(x)

        batches_from = partial(self.data.heldout, source, self.rows)
        for i, batch in enumerate(self.kept.placed(source, batches_from, self.mesh)):
            if most_tokens and i and i * self.rows * self.data.seq_len >= most_tokens:
                break
            outstanding.append(self.evaluate(params, frozen, batch, i))
            read(ahead)
        read(0)
        return sums
