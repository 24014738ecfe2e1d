"""The loader: from the value `Data` to batches.

`prepare` trains or finds the tokenizer and the token stores. The `Batches` that it returns give the batch of any step
as a pure function of (seed, step), whole or the rows of one process; `batches` reads them ahead with Grain.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from lm.data.compression import heldout_compression
from lm.data.mixture import Apportionment, Data
from lm.data.objective import Batch, CausalLM, Chance, Objective, Rows, padded, setting_of
from lm.data.pack import Plan
from lm.data.random import generator
from lm.data.source import SPLITS, Documents
from lm.data.store import TokenStore, open_store
from lm.machine.cache import cache_dir, write_folder
from lm.text.tokenizer import Tokenizer, load_tokenizer
from lm.value import fingerprint, suggest

Which = slice | np.ndarray  # rows of a batch, by their numbers
Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is


def prepare(
    data: Data,
    seq_len: int,
    batch_rows: int,
    seed: int = 0,
    objective: Objective | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    encoder: bool = False,
) -> "Batches":
    """Everything that `data` needs, made or found in the cache: batches of `batch_rows` rows of `seq_len` tokens, for a
    model that has an `encoder` or none.

    `tokenizer` takes the place of the one that `data` would train (that of an earlier part of the run). Raises
    ValueError for a source that cannot be read or holds nothing."""
    tokenizer = tokenizer or make_tokenizer(data, progress)
    stores = {}
    for split in SPLITS:
        for name, source in data.mixture.sources.items():
            tell = (lambda done, total, what=f"{name}, {split}": progress(what, done, total)) if progress else None
            try:
                stores[name, split] = open_store(source, split, tokenizer, tell)
            except ValueError as error:
                raise ValueError(f"source {name!r}: {error}") from None
    return Batches(data, tokenizer, stores, seq_len, batch_rows, seed, objective or CausalLM(), encoder)


def make_tokenizer(data: Data, progress: Progress | None = None) -> Tokenizer:
    """The tokenizer of `data`, trained on the train split of its sources, or found in the cache."""
    named = fingerprint([data.tokenizer, [source.fingerprint() for source in data.mixture.sources.values()]])
    folder = cache_dir() / "tokenizers" / named
    try:
        return load_tokenizer(folder)
    except ValueError:  # not there, or damaged
        pass
    if progress:
        progress("tokenizer", 0, 1)
    tokenizer = data.tokenizer.make(training_texts([s.documents("train") for s in data.mixture.sources.values()]))
    write_folder(folder, tokenizer.save)
    if progress:
        progress("tokenizer", 1, 1)
    return tokenizer


def training_texts(sources: list[Documents]) -> Iterator[str]:
    """The documents of all sources, each source in a random order of its own, always from the one that has given least:
    so that the first n bytes hold as much of each as there is."""
    queues = [iter(generator(0, "tokenizer", i).permutation(len(d)).tolist()) for i, d in enumerate(sources)]
    given = dict.fromkeys(range(len(sources)), 0)
    while given:
        least = min(given, key=lambda i: given[i])
        index = next(queues[least], None)
        if index is None:
            del given[least]
            continue
        text = sources[least][index]
        given[least] += len(text.encode())
        yield text


@dataclass(frozen=True)
class Amount:
    """How much text a split holds."""

    documents: int
    tokens: int
    bytes: int


class Batches:
    """The batches of an experiment. `tokenizer`, and `stores` by (source, split), are for whoever wants to look."""

    def __init__(
        self,
        data: Data,
        tokenizer: Tokenizer,
        stores: dict[tuple[str, str], TokenStore],
        seq_len: int,
        batch_rows: int,
        seed: int,
        objective: Objective,
        encoder: bool = False,
    ):
        self.data, self.tokenizer, self.stores = data, tokenizer, stores
        self.seq_len, self.batch_rows, self.seed, self.objective = seq_len, batch_rows, seed, objective
        self.sources = list(data.mixture.sources)
        self._apportionment = Apportionment(data.mixture, batch_rows, seed)
        self.setting = setting_of(tokenizer, seq_len, encoder)
        self._row_tokens = objective.row_tokens(self.setting)
        self._plans = {key: data.packing.plan(store, self._row_tokens, key[0]) for key, store in stores.items()}
        self._check_pairs()

    def _check_pairs(self) -> None:
        for (source, split), plan in self._plans.items():
            if self.objective.in_pairs and plan.rows_per_epoch < 2:
                raise ValueError(
                    f"source {source!r} has one row of {split} text, and each row needs another beside it: "
                    "give it more text or a shorter seq_len, or objective.next_sentence=False"
                )

    def batch(self, step: int, rows: Which | None = None) -> Batch:
        """The batch of `step`: arrays [B, …], or those of its `rows` only. A pure function of the seed and the step."""
        which, numbers = self._numbers(step, rows)

        def chance(row: int, what: str = "objective") -> np.random.Generator:
            return generator(self.seed, what, self.sources[which[row]], int(numbers[row]))

        read = self._rows(which, numbers)
        if self.objective.in_pairs:
            plans = [self._plans[self.sources[i], "train"] for i in which]
            read = _joined(read, self._rows(which, _others(plans, numbers, lambda row: chance(row, "another row"))))
        return self.objective.batch(read, self.setting, chance)

    def rows(self, step: int, rows: Which | None = None) -> Rows:
        """The rows of tokens that `batch` is made from, less those of an objective that is `in_pairs`."""
        return self._rows(*self._numbers(step, rows))

    def _numbers(self, step: int, rows: Which | None) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row, and its number there."""
        which, numbers = self._apportionment.rows(step)
        chosen = slice(None) if rows is None else rows
        return which[chosen], numbers[chosen]

    def _rows(self, which: np.ndarray, numbers: np.ndarray) -> Rows:
        out = Rows(*(np.zeros((len(which), self._row_tokens + 1), np.int32) for _ in Rows._fields))
        for i in np.unique(which):
            part = self._plans[self.sources[i], "train"].rows(numbers[which == i], self.seed)
            for array, values in zip(out, part, strict=True):
                array[which == i] = values
        return out

    def batches(self, start_step: int = 0, rows: Which | None = None, threads: int = 1, ahead: int = 4) -> "Reader":
        """The batches from `start_step` on, without end: whole, or the `rows` of each that one process reads.
        `threads` read up to `ahead` batches in advance."""
        return Reader(_Steps(self, start_step, rows), threads, ahead)

    def heldout(self, source: str, batch_rows: int | None = None) -> Iterator[Batch]:
        """All held-out rows of `source`, in their order, always asked the same: CausalLM makes every token that has a
        predecessor in its document a target exactly once. The last batch is filled with rows of padding."""
        plan = self._plans[self._known(source), "heldout"]
        size = batch_rows or self.batch_rows
        for start in range(0, plan.rows_per_epoch, size):
            numbers = np.arange(start, min(start + size, plan.rows_per_epoch))
            read = plan.rows(numbers, None)
            if self.objective.in_pairs:
                others = _others([plan] * len(numbers), numbers, _heldout_chance(source, start, "another held-out row"))
                read = _joined(read, plan.rows(others, None))
            yield padded(self.objective.batch(read, self.setting, _heldout_chance(source, start)), size)

    def heldout_batches(self, source: str, batch_rows: int | None = None) -> int:
        """How many batches `heldout` gives."""
        return -(-self._plans[self._known(source), "heldout"].rows_per_epoch // (batch_rows or self.batch_rows))

    def heldout_bytes(self, source: str) -> int:
        """The UTF-8 bytes of the held-out documents of `source`: what bits per byte divides by."""
        return self.stores[self._known(source), "heldout"].total_bytes

    def compression(self, source: str) -> dict[str, float]:
        """Bits per byte of gzip -9 and xz -9e on the held-out documents of `source`, one by one."""
        return heldout_compression(self.data.mixture.sources[self._known(source)])

    def shares(self, step: int) -> dict[str, float]:
        """The share of each source in the mixture at `step`."""
        return dict(zip(self.sources, self.data.mixture.shares(np.array([step]))[0].tolist(), strict=True))

    def summary(self) -> dict[str, dict[str, Amount]]:
        """How much there is, by source and split."""
        amounts = {key: Amount(len(s), s.total_tokens, s.total_bytes) for key, s in self.stores.items()}
        return {name: {split: amounts[name, split] for split in SPLITS} for name in self.sources}

    def _known(self, source: str) -> str:
        if source not in self.sources:
            raise ValueError(f"no source {source!r}: {suggest(source, self.sources)}")
        return source


def _heldout_chance(source: str, start: int, what: str = "heldout") -> Chance:
    """That of held-out rows from number `start` on: no seed of a run changes what they are asked."""
    return lambda row: generator(0, what, source, start + row)


def _others(plans: list[Plan], numbers: np.ndarray, chance: Chance) -> np.ndarray:
    """[R]: for each row another one of the same epoch of its plan, by chance."""
    found = []
    for i, (plan, number) in enumerate(zip(plans, numbers.tolist(), strict=True)):
        epoch, place = divmod(number, plan.rows_per_epoch)
        away = int(chance(i).integers(1, plan.rows_per_epoch))
        found.append(epoch * plan.rows_per_epoch + (place + away) % plan.rows_per_epoch)
    return np.array(found, np.int64)


def _joined(rows: Rows, others: Rows) -> Rows:
    """The rows, then the others."""
    return Rows(*(np.concatenate(both) for both in zip(rows, others, strict=True)))


class _Steps:
    """The batches of one process as Grain reads them: item k is that of step start + k."""

    def __init__(self, batches: Batches, start: int, rows: Which | None):
        self._batches, self._start, self._rows = batches, start, rows

    def __len__(self) -> int:
        return 2**48  # without end, for all that Grain needs to know

    def __getitem__(self, index: Any) -> Batch:
        return self._batches.batch(self._start + int(index), self._rows)


class Reader(Iterator[Batch]):
    """Batches read ahead by Grain's threads. Close it, or use it in a `with`, to stop them."""

    def __init__(self, steps: _Steps, threads: int, ahead: int):
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        self._iterator = iter(grain.MapDataset.source(steps).to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        self._iterator.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
