"""What another model gives for the rows of training, computed once and kept in the cache.

Rows are a pure function of the seed and the step, so what a frozen model says of them is too. It is kept by blocks of
steps, each a folder of the cache that is written at once: a run that was killed while it computed goes on after the
last block, and runs that read the same rows share them.
"""

import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.data.objective import Batch, padded
from lm.machine import processes
from lm.machine.cache import cache_dir, discard, is_complete, locked, write_folder
from lm.machine.monitor import preparing

BLOCK = 8  # steps
READ = "read.npy"  # in a block: a checksum of each step's tokens


@dataclass(frozen=True)
class Outputs:
    """Arrays beside the batches of training, by step; `key` is of all that they depend on."""

    key: str

    def _folder(self, block: int) -> Path:
        return cache_dir() / "outputs" / self.key / f"{block * BLOCK:08}"

    def missing(self, start: int, steps: int) -> list[int]:
        """The blocks of steps from `start` up to `steps` that are not kept."""
        blocks = range(start // BLOCK, -(-steps // BLOCK))
        return [block for block in blocks if not is_complete(self._folder(block))]

    def complete(
        self, start: int, steps: int, batch: Callable[[int], Batch], build: Callable[[], Callable[[Batch], Batch]]
    ) -> None:
        """Compute what is missing of the steps from `start` up to `steps`, and keep it; `build` makes (batch) -> arrays
        where something is."""
        missing = self.missing(start, steps)
        if not processes.in_any("outputs", bool(missing)):  # to load a model takes all of them
            return
        what, compute = f"the teacher's outputs of {len(missing) * BLOCK:,} steps", build()
        with preparing() if processes.is_first() else contextlib.nullcontext(_silent) as progress:
            progress(what, 0, 1)
            for block in missing:
                self.write(block, batch, compute)
            progress(what, 1, 1)

    def write(self, block: int, batch: Callable[[int], Batch], compute: Callable[[Batch], Batch]) -> None:
        """Keep what `compute` gives for each `batch` of the steps in `block`."""
        folder = self._folder(block)
        with locked(folder.parent):
            if is_complete(folder):  # another process has written it meanwhile
                return
            discard(folder)
            write_folder(folder, lambda temporary: _fill(temporary, block, batch, compute))

    def beside(self, step: int, batch: Batch) -> Batch:
        """The `batch` of `step` with its arrays. Raises ValueError where they are of another one."""
        block, at = divmod(step, BLOCK)
        arrays = _open(self._folder(block))
        if arrays[READ][at] != _checksum(batch):
            raise ValueError(f"{self._folder(block)} is of other rows than those of step {step}: remove it")
        return batch | {name: _plain(array[at]) for name, array in arrays.items() if name != READ}


def _fill(folder: Path, block: int, batch: Callable[[int], Batch], compute: Callable[[Batch], Batch]) -> None:
    batches = [batch(block * BLOCK + i) for i in range(BLOCK)]
    found = [compute(one) for one in batches]
    np.save(folder / READ, np.array([_checksum(one) for one in batches], np.uint32))
    for name in found[0]:
        np.save(folder / f"{name}.npy", np.stack([one[name] for one in found]))


def _silent(what: str, done: int, total: int) -> None:
    """No progress: for processes other than the first."""


def by_rows(function: Callable[[Batch], Any], batch: Batch, rows: int) -> Batch:
    """function(batch), arrays by row, on the host, computed `rows` of the batch at a time."""
    count, parts = len(batch["tokens"]), []
    for start in range(0, count, rows):
        some = {name: array[start : start + rows] for name, array in batch.items()}
        parts.append(jax.device_get(function(padded(some, rows))))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def _plain(array: np.ndarray) -> np.ndarray:
    """A copy in memory, ids in int32."""
    return np.array(array, np.int32 if array.dtype.kind == "u" else array.dtype)


def _checksum(batch: Batch) -> int:
    return zlib.crc32(batch["segment_ids"].tobytes(), zlib.crc32(batch["tokens"].tobytes()))


@lru_cache(maxsize=4)
def _open(folder: Path) -> Batch:
    """The arrays of a block, mapped into memory."""
    try:
        return {file.name if file.name == READ else file.stem: np.load(file, "r") for file in folder.glob("*.npy")}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is damaged: {error}; remove it") from None
