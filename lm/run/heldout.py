"""Held-out data, measured by a method: each of its measures, by source."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from lm.data.loader import Batches
from lm.train.method import Learner
from lm.train.step import Evaluate, place


@dataclass(frozen=True)
class HeldOut:
    """The held-out `data` of all sources in batches of `rows`, which `learner` measures; `evaluate` is its compiled
    evaluation of a batch, over `mesh`."""

    learner: Learner
    data: Batches
    evaluate: Evaluate
    mesh: Mesh
    rows: int

    def measure(self, params: Any, frozen: Any, most_tokens: int = 0) -> dict[str, float]:
        """SOURCE/MEASURE for each of the measures, and the mean of the first measure over the sources, by its name.

        At most `most_tokens` a source are read (0: all). All processes call it, and get the same."""
        found = self.by_source(params, frozen, most_tokens)
        first = next(name for values in found.values() for name in values)
        mean = sum(values[first] for values in found.values()) / len(found)
        return {f"{source}/{name}": x for source, values in found.items() for name, x in values.items()} | {first: mean}

    def by_source(self, params: Any, frozen: Any, most_tokens: int = 0) -> dict[str, dict[str, float]]:
        """source -> its measures."""
        sums = {source: self._sums(params, frozen, most_tokens, source) for source in self.data.sources}
        return {source: self.learner.measure(found, self.data, source) for source, found in sums.items()}

    def _sums(self, params: Any, frozen: Any, most_tokens: int, source: str) -> dict[str, float]:
        """The sums over the held-out batches of `source` from which measures are made."""
        sums: dict[str, float] = {}
        for i, batch in enumerate(self.data.heldout(source, self.rows)):
            if most_tokens and i and i * self.rows * self.data.seq_len >= most_tokens:
                break
            found = jax.device_get(self.evaluate(params, frozen, place(batch, self.mesh), i))
            sums = {name: sums.get(name, 0.0) + float(x) for name, x in found.items()}
        return sums
