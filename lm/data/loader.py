"""The loader: from the value `Data` to batches.

`prepare` trains the tokenizer and tokenises the sources, or finds both in the cache. The `Batches` that it returns have
the batch of any step as a pure function of (seed, step), all rows or those of one process; `batches` prefetches them
in threads.
"""

import contextlib
import functools
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from lm.data.captions import ImagesOfRows
from lm.data.compression import heldout_compression
from lm.data.mixture import Data, Mixture, MixtureSampler
from lm.data.objective import Batch, CausalLM, Objective, RowRng, Rows, objective_context, padded
from lm.data.pack import OnePerRow, PackingPlan
from lm.data.prompts import Rollouts
from lm.data.random import generator
from lm.data.source import SPLITS, Documents, Source, text_hash
from lm.data.store import TokenStore, open_store
from lm.machine.cache import cache_dir, write_folder
from lm.text.tokenizer import Tokenizer, load_tokenizer
from lm.value import fingerprint, suggest

TRAINING = 2  # of tokenizers: raise it when the same text gives another one
RowSelection = slice | np.ndarray  # rows of a batch, by index
Progress = Callable[[str, int, int], None]  # (what, done, total)


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
    """The batches of `data`, whose tokenizer and tokens are made now or found in the cache.

    Args:
      data: sources, tokenizer and packing.
      seq_len: T, the inputs of a row (tokens).
      batch_rows: B, the rows of a batch.
      seed: of the order of rows and of what is random in the objective.
      objective: rows to batches; None is CausalLM.
      tokenizer: in place of the one that `data` declares: that of a resumed run.
      progress: called with (what, done, total) while something is made.
      encoder: whether the model has an encoder.

    Raises:
      ValueError: for a source that cannot be read or is empty, and for rows too short for the objective.
    """
    check_kinds(data.mixture, objective or CausalLM())
    tokenizer = tokenizer or make_tokenizer(data, progress)
    stores = {}
    for split in SPLITS:
        for name, source in data.mixture.sources.items():
            report = (lambda done, total, what=f"{name}, {split}": progress(what, done, total)) if progress else None
            with _naming(name):
                stores[name, split] = open_store(source, split, tokenizer, report)
    return Batches(data, tokenizer, stores, seq_len, batch_rows, seed, objective or CausalLM(), encoder)


def check_kinds(mixture: Mixture, objective: Objective) -> None:
    """Raises ValueError where a source has another kind of documents than `objective` reads."""
    name, reads = type(objective).__name__, objective.reads
    for source, one in mixture.sources.items():
        if one.kind != reads:
            raise ValueError(
                f"source {source!r}: {type(one).__name__} has {one.kind}, and the objective {name} reads {reads}: "
                "take another source, or another method"
            )


def make_tokenizer(data: Data, progress: Progress | None = None) -> Tokenizer:
    """The tokenizer of `data`, trained on the train split of its sources, or found in the cache."""
    sources = [source.fingerprint() for source in data.mixture.sources.values()]
    key = fingerprint([TRAINING, data.tokenizer, sources])
    folder = cache_dir() / "tokenizers" / key
    try:
        return load_tokenizer(folder)
    except ValueError:  # missing or damaged
        pass
    if progress:
        progress("tokenizer", 0, 1)
    train = []
    for name, source in data.mixture.sources.items():
        with _naming(name):
            train.append(_plain(source, source.documents("train")))
    tokenizer = data.tokenizer.make(training_texts(train))
    write_folder(folder, tokenizer.save)
    if progress:
        progress("tokenizer", 1, 1)
    return tokenizer


def _plain(source: Source, documents: Documents) -> Documents:
    """The texts in `documents` of `source`."""
    return Documents(len(documents), lambda i: source.plain_text(documents[i]))


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """A ValueError within begins with the name of the source."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"source {source!r}: {error}") from None


def training_texts(sources: list[Documents]) -> Iterator[str]:
    """The documents of all sources, each source shuffled, always from the source with the fewest bytes so far: so that
    any prefix has equal shares of each, as far as it goes."""
    queues = [iter(generator(0, "tokenizer", i).permutation(len(d)).tolist()) for i, d in enumerate(sources)]
    bytes_of = dict.fromkeys(range(len(sources)), 0)
    while bytes_of:
        source = min(bytes_of, key=lambda i: bytes_of[i])
        index = next(queues[source], None)
        if index is None:
            del bytes_of[source]
            continue
        text = sources[source][index]
        bytes_of[source] += len(text.encode())
        yield text


class Origin(NamedTuple):
    """Where a token comes from: the `source`, the `number` of the document among those of training (-1: padding), and
    the file and place of that ("": not known)."""

    source: str
    number: int
    where: str


@dataclass(frozen=True)
class SplitSize:
    """The size of a split; `duplicates` are those of its documents that are equal to an earlier one (None: not
    counted)."""

    documents: int
    tokens: int
    bytes: int
    duplicates: int | None = field(default=None, compare=False)


class Batches:
    """The batches of an experiment; `stores` are the tokens by (source, split). The arguments are those of
    `prepare`."""

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
        check_kinds(data.mixture, objective)
        self._copies = objective.row_copies
        self._sampler = MixtureSampler(data.mixture, batch_rows // self._copies, seed)
        self.context = objective_context(tokenizer, seq_len, encoder)
        self._row_tokens = objective.row_tokens(self.context)
        self._plans = {key: self._plan(store, key[0]) for key, store in stores.items()}
        self.context = replace(self.context, pairs=max(plan.pairs for plan in self._plans.values()))
        self._documents: dict[tuple[str, str], Documents] = {}
        self._images = ImagesOfRows.of_sources(data.mixture.sources, stores, self._plans, self._row_tokens)
        self._check_row_pairs()

    def _plan(self, store: TokenStore, source: str) -> PackingPlan:
        if isinstance(self.data.packing, OnePerRow) != isinstance(self.objective, Rollouts):
            cure = "packing=OnePerRow() is for methods that continue prompts, and for those alone"
            raise ValueError(f"{type(self.objective).__name__} with packing={self.data.packing!r}: {cure}")
        with _naming(source):
            return self.data.packing.plan(store, self._row_tokens, source)

    def _check_row_pairs(self) -> None:
        for (source, split), plan in self._plans.items():
            if self.objective.reads_row_pairs and plan.rows_per_epoch < 2:
                raise ValueError(
                    f"source {source!r} has one row of {split} text, and next-sentence prediction needs two: "
                    "give it more text or a shorter seq_len, or next_sentence=False in the objective"
                )

    def batch(self, step: int, rows: RowSelection | None = None) -> Batch:
        """The batch of `step`: arrays [B, …], or those of its `rows` only. A pure function of the seed and the step."""
        which, numbers = self._numbers(step, rows)

        def row_rng(row: int, purpose: str = "objective") -> np.random.Generator:
            return generator(self.seed, purpose, self.sources[which[row]], int(numbers[row]))

        tokens = self._rows(which, numbers)
        if self.objective.reads_row_pairs:
            plans = [self._plans[self.sources[i], "train"] for i in which]
            others = _other_rows(plans, numbers, lambda row: row_rng(row, "another row"))
            tokens = _concatenate(tokens, self._rows(which, others))
        batch = self.objective.batch(tokens, self.context, row_rng)
        batch = self._numbered(batch, [self._first_record[self.sources[i], "train"] for i in which])
        keys = [(self.sources[i], "train") for i in which]
        return batch | self._images.of(keys, numbers, self.seed, tokens) if self._images else batch

    @functools.cached_property
    def _first_record(self) -> dict[tuple[str, str], int]:
        """The number of the first record of each (source, split)."""
        sizes = [len(store) for store in self.stores.values()]
        return dict(zip(self.stores, np.cumsum([0, *sizes]).tolist(), strict=False))

    def _numbered(self, batch: Batch, first: Any) -> Batch:
        """`batch` with the numbers of its records, where it has any, among those of all sources and splits."""
        if "record" not in batch:
            return batch
        return {**batch, "record": (batch["record"] + np.asarray(first, np.int32)).astype(np.int32)}

    def other_prompts(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """A batch of other prompts, drawn by `rng`: each of the source and split of that in its place in `batch`."""
        keys = [self._store_of(number)[0] for number in batch["record"][:: self._copies].tolist()]
        rows = [self._plans[key].rows(rng.integers(self._plans[key].rows_per_epoch, size=1), None) for key in keys]
        joined = Rows(*(np.repeat(np.concatenate(arrays), self._copies, axis=0) for arrays in zip(*rows, strict=True)))
        first = np.repeat([self._first_record[key] for key in keys], self._copies)
        return self._numbered(self.objective.batch(joined, self.context), first)

    def _store_of(self, number: int) -> tuple[tuple[str, str], int]:
        """The source and split of a record, and the number of their first."""
        return max(((k, n) for k, n in self._first_record.items() if n <= number), key=lambda found: found[1])

    def record(self, number: int) -> dict[str, Any]:
        """The record with this number in a batch's `record`."""
        key, first = self._store_of(number)
        if key not in self._documents:
            self._documents[key] = self.data.mixture.sources[key[0]].documents(key[1])
        found: dict[str, Any] = json.loads(self._documents[key][number - first])
        return found

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where it is, the record) of every document of every source and split."""
        for (source, split), store in self.stores.items():
            documents = self.data.mixture.sources[source].documents(split)
            assert len(documents) == len(store), (source, split)
            for i in range(len(documents)):
                yield f"source {source!r}: {documents.where(i) or f'{split} record {i}'}", json.loads(documents[i])

    def fingerprint(self, rows: RowSelection | None = None) -> str:
        """16 hex digits that change with what a batch of training, or those of its `rows`, depends on."""
        sources = [(name, source.fingerprint()) for name, source in self.data.mixture.sources.items()]
        mixture = self.data.mixture, self.data.packing, sources, self.tokenizer.fingerprint
        read = np.arange(self.batch_rows)[slice(None) if rows is None else rows].tolist()
        return fingerprint([*mixture, self.objective, self.seed, self.seq_len, self.batch_rows, read])

    def rows(self, step: int, rows: RowSelection | None = None) -> Rows:
        """The rows that `batch` is made from, without the other rows of an objective that `reads_row_pairs`."""
        return self._rows(*self._numbers(step, rows))

    def origin(self, step: int, row: int, token: int) -> Origin:
        """Where a token of `rows(step)` comes from."""
        which, numbers = self._numbers(step, np.array([row]))
        source = self.sources[which[0]]
        number = int(self._plans[source, "train"].documents(numbers, self.seed)[0, token])
        return Origin(source, number, self._where(source, number) if number >= 0 else "")

    def _where(self, source: str, number: int) -> str:
        """The place of a document of training; the store leaves out those that are empty or dropped."""
        store, documents = self.stores[source, "train"], self.data.mixture.sources[source].documents("train")
        left_out = len(documents) - len(store)
        if not left_out or store.hashes is None:
            return "" if left_out else documents.where(number)
        same = (i for i in range(number, number + left_out + 1) if text_hash(documents[i]) == store.hashes[number])
        return next((documents.where(i) for i in same), "")

    def _numbers(self, step: int, rows: RowSelection | None) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row, and its number within the source."""
        which, numbers = (np.repeat(a, self._copies) for a in self._sampler.rows(step))
        selected = slice(None) if rows is None else rows
        return which[selected], numbers[selected]

    def _rows(self, which: np.ndarray, numbers: np.ndarray) -> Rows:
        out = Rows.empty(len(which), self._row_tokens + 1)
        for i in np.unique(which):
            part = self._plans[self.sources[i], "train"].rows(numbers[which == i], self.seed)
            for array, values in zip(out, part, strict=True):
                array[which == i] = values
        return out

    def batches(
        self, start_step: int = 0, rows: RowSelection | None = None, threads: int = 1, ahead: int = 4
    ) -> "Reader":
        """The batches of `start_step` and all steps after it, or only the `rows` of them that this process reads.
        `threads` prefetch up to `ahead` batches."""
        return Reader(lambda step: self.batch(step, rows), start_step, threads, ahead)

    def heldout(self, source: str, batch_rows: int | None = None, first: int = 0) -> Iterator[Batch]:
        """All held-out rows of `source` from batch `first` on, in order, the same for every seed: under CausalLM every
        token that has a predecessor in its document is a target exactly once. The last batch is padded with empty
        rows."""
        plan = self._plans[self._known(source), "heldout"]
        size = batch_rows or self.batch_rows
        for start in range(first * size, plan.rows_per_epoch, size):
            numbers = np.arange(start, min(start + size, plan.rows_per_epoch))
            rows = plan.rows(numbers, None)
            if self.objective.reads_row_pairs:
                rng = _heldout_rng(source, start, "another held-out row")
                rows = _concatenate(rows, plan.rows(_other_rows([plan] * len(numbers), numbers, rng), None))
            batch = self.objective.batch(rows, self.context, _heldout_rng(source, start))
            batch = self._numbered(batch, self._first_record[source, "heldout"])
            if self._images:
                batch |= self._images.of([(source, "heldout")] * len(numbers), numbers, None, rows)
            yield padded(batch, size)

    def heldout_batches(self, source: str, batch_rows: int | None = None) -> int:
        """The number of batches of `heldout`."""
        return -(-self._plans[self._known(source), "heldout"].rows_per_epoch // (batch_rows or self.batch_rows))

    def same_heldout(self, other: "Batches") -> bool:
        """Whether the batches of `heldout` are those of `other`."""
        ours, theirs = (
            (
                *(batches.data.mixture.sources, batches.data.packing, batches.objective),
                *(batches.seq_len, batches.batch_rows, {key: store.folder for key, store in batches.stores.items()}),
            )
            for batches in (self, other)
        )
        return ours == theirs

    def heldout_bytes(self, source: str) -> int:
        """The UTF-8 bytes that are predicted in the held-out documents of `source`: the denominator of bits per
        byte."""
        return self.stores[self._known(source), "heldout"].coded_bytes

    def compression(self, source: str) -> dict[str, float]:
        """Bits per byte of gzip -9 and xz -9e on the held-out documents of `source`, one by one."""
        return heldout_compression(self.data.mixture.sources[self._known(source)])

    def shares(self, step: int) -> dict[str, float]:
        """The share of each source in the mixture at `step`."""
        return dict(zip(self.sources, self.data.mixture.shares(np.array([step]))[0].tolist(), strict=True))

    def summary(self) -> dict[str, dict[str, SplitSize]]:
        """The sizes of all splits: source -> split -> size."""
        sizes = {key: SplitSize(len(s), s.total_tokens, s.total_bytes, s.duplicates) for key, s in self.stores.items()}
        return {name: {split: sizes[name, split] for split in SPLITS} for name in self.sources}

    def remarks(self) -> list[str]:
        """What one should know about the documents: what is left out, duplicates, what is on both sides."""
        trained = [s.hashes for (_, split), s in self.stores.items() if split == "train" and s.hashes is not None]
        lines = []
        for name, source in self.data.mixture.sources.items():
            if left_out := source.left_out():
                lines.append(f"source {name!r}: left out: {left_out}")
            for split in SPLITS:
                remarks = [*_remarks(self.stores[name, split]), self._plans[name, split].left_out]
                lines += [f"source {name!r}, {split}: {remark}" for remark in remarks if remark]
            held = self.stores[name, "heldout"].hashes
            if trained and held is not None and (shared := int(np.isin(held, np.concatenate(trained)).sum())):
                lines.append(f"source {name!r}: {shared:,} of {len(held):,} held-out documents are trained on too")
        return lines

    def _known(self, source: str) -> str:
        if source not in self.sources:
            raise ValueError(f"no source {source!r}: {suggest(source, self.sources)}")
        return source


def _remarks(store: TokenStore) -> Iterator[str]:
    if store.unknown:
        of = f"{store.unknown:,} of {store.total_tokens:,} tokens"
        yield f"{of} are unknown, and bits per byte do not code what they stand for"
    if store.duplicates:
        yield f"{store.duplicates:,} of {len(store):,} documents equal another"
    if store.dropped:
        yield f"left out: {store.dropped}"


def _heldout_rng(source: str, start: int, purpose: str = "heldout") -> RowRng:
    """The generators of held-out rows from number `start` on, the same for every seed of a run."""
    return lambda row: generator(0, purpose, source, start + row)


def _other_rows(plans: list[PackingPlan], numbers: np.ndarray, row_rng: RowRng) -> np.ndarray:
    """[R]: for each row the number of another one in the same epoch of its plan, at random."""
    others = []
    for i, (plan, number) in enumerate(zip(plans, numbers.tolist(), strict=True)):
        epoch, index = divmod(number, plan.rows_per_epoch)
        shift = int(row_rng(i).integers(1, plan.rows_per_epoch))
        others.append(epoch * plan.rows_per_epoch + (index + shift) % plan.rows_per_epoch)
    return np.array(others, np.int64)


def _concatenate(rows: Rows, others: Rows) -> Rows:
    return Rows(*(np.concatenate(both) for both in zip(rows, others, strict=True)))


class Reader(Iterator[Batch]):
    """The batches `read(start)`, `read(start + 1)`, … in order, of which `threads` prefetch up to `ahead`. An exception
    in `read` is raised by the `next` whose batch it was. Close it, or use it in a `with`, to end the threads."""

    def __init__(self, read: Callable[[int], Batch], start: int, threads: int, ahead: int):
        self._pool = ThreadPoolExecutor(threads, "batches")
        self._futures = (self._pool.submit(read, step) for step in itertools.count(start))
        self._pending = deque(itertools.islice(self._futures, ahead))

    def __next__(self) -> Batch:
        self._pending.append(next(self._futures))
        return self._pending.popleft().result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
