"""Packing: from documents of any length to rows of T + 1 tokens (T inputs and, shifted by one, T targets).

Rows are numbered without end: epoch e of the store has rows e * K to (e + 1) * K - 1, and each row is a pure function
of the seed and its number. In every epoch each document is read once, in a new order, and every token that has a
predecessor in its document is a target exactly once.
"""

import functools
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lm.data.objective import Rows
from lm.data.random import generator
from lm.data.store import TokenStore


class PackingPlan:
    """The rows of one store under one packing: `rows_per_epoch` (K), and `rows`; `left_out` says in words what of the
    store is in no row, "" where everything is; `pairs` is the most preference pairs in a row."""

    rows_per_epoch: int
    left_out = ""
    pairs = 0

    def __init__(self, name: str):
        self._name = name
        self._cached = functools.lru_cache(maxsize=3)(self._table)  # an epoch or two are in use at a time

    def rows(self, numbers: np.ndarray, seed: int | None) -> Rows:
        """The rows with these numbers (any order, any epoch); with seed=None the documents are not shuffled."""
        numbers = np.asarray(numbers, np.int64)
        epochs, indices = np.divmod(numbers, self.rows_per_epoch)
        parts = [(epochs == e, self._rows(self._cached(seed, int(e)), indices[epochs == e])) for e in np.unique(epochs)]
        out = Rows.empty(len(numbers), self._width)
        for selected, part in parts:
            for array, values in zip(out, part, strict=True):
                array[selected] = values
        return out

    def documents(self, numbers: np.ndarray, seed: int | None) -> np.ndarray:
        """[R, T + 1]: which document of the store each token of these rows is of, -1 in padding."""
        out = np.full((len(numbers), self._width), -1, np.int64)
        for i, number in enumerate(np.asarray(numbers, np.int64).tolist()):
            epoch, index = divmod(number, self.rows_per_epoch)
            out[i] = self._documents_of(self._cached(seed, epoch), index)
        return out

    _width: int  # T + 1

    def _table(self, seed: int | None, epoch: int) -> NamedTuple:
        raise NotImplementedError

    def _rows(self, table: NamedTuple, indices: np.ndarray) -> Rows:
        raise NotImplementedError

    def _documents_of(self, table: NamedTuple, index: int) -> np.ndarray:
        """[T + 1] of one row: see `documents`."""
        raise NotImplementedError

    def _permutation(self, seed: int | None, epoch: int, purpose: str, count: int) -> np.ndarray:
        return np.arange(count) if seed is None else generator(seed, self._name, purpose, epoch).permutation(count)


@dataclass(frozen=True)
class Packing:
    """How documents become rows."""

    def plan(self, store: TokenStore, seq_len: int, name: str = "") -> PackingPlan:
        """The rows of `store` with `seq_len` inputs each; its random order is a function of `name`. Raises ValueError
        where no token is a target."""
        raise NotImplementedError


@dataclass(frozen=True)
class Chunk(Packing):
    """The epoch's documents concatenated and cut into windows that overlap by one token: only the last row is padded.
    Windows start at a random offset of the epoch and come in random order. Attention stays within a document unless
    `across_documents`."""

    across_documents: bool = False

    def plan(self, store: TokenStore, seq_len: int, name: str = "") -> PackingPlan:
        _check(store, seq_len)
        if store.loss is not None:
            what = "conversations" if store.second is None else "pairs"
            raise ValueError(f"packing=Chunk() would cut {what} anywhere: set data.packing=Pack()")
        return _ChunkPlan(store, seq_len, name, self.across_documents)


class _Stream(NamedTuple):
    """An epoch of Chunk: the documents' order [D], where each starts in the stream [D], the offset, the rows' order
    [K]."""

    order: np.ndarray
    starts: np.ndarray
    offset: int
    rows: np.ndarray


class _ChunkPlan(PackingPlan):
    def __init__(self, store: TokenStore, seq_len: int, name: str, across: bool):
        super().__init__(name)
        self._store, self._across, self._width = store, across, seq_len + 1
        self.rows_per_epoch = -(-store.total_tokens // seq_len)

    def _table(self, seed: int | None, epoch: int) -> _Stream:
        order = self._permutation(seed, epoch, "documents", len(self._store))
        starts = np.concatenate([[0], np.cumsum(self._store.lengths[order])[:-1]])
        offset = (
            0 if seed is None else int(generator(seed, self._name, "offset", epoch).integers(self._store.total_tokens))
        )
        return _Stream(order, starts, offset, self._permutation(seed, epoch, "rows", self.rows_per_epoch))

    def _rows(self, table: NamedTuple, indices: np.ndarray) -> Rows:
        """The stream is a ring, which the windows cover once from the offset; the seam lies between two documents."""
        assert isinstance(table, _Stream)
        inside, ordinal, lap, position = self._windows(table, indices)
        source = self._store.offsets[table.order[ordinal]] + position - table.starts[ordinal]
        tokens = np.where(inside, self._store.tokens[source], 0)
        documents = np.where(inside, _numbered(ordinal + lap * len(self._store)), 0)
        there = inside.astype(np.int32)
        return Rows(tokens, documents, there if self._across else documents, there)

    def _windows(self, table: _Stream, indices: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray, np.ndarray]:
        """Of each token [R, T + 1] of these rows: whether there is one, the place of its document in the order, the lap
        around the ring, its place in the stream."""
        total, width = self._store.total_tokens, self._width
        at = table.rows[indices][:, None] * (width - 1) + np.arange(width)
        inside = at <= total  # the token at the offset is the first input and the last target
        lap, position = np.divmod(at + table.offset, total)
        return inside, np.searchsorted(table.starts, position, side="right") - 1, lap, position

    def _documents_of(self, table: NamedTuple, index: int) -> np.ndarray:
        assert isinstance(table, _Stream)
        inside, ordinal, _, _ = self._windows(table, np.array([index]))
        return np.where(inside, table.order[ordinal], -1)[0]


@dataclass(frozen=True)
class Pack(Packing):
    """Documents are kept in one piece, as many to a row as fit (best-fit decreasing, Johnson 1974), and the rest of the
    row is padding. Those longer than a row are cut into pieces that overlap by one token; conversations are cut after
    the assistant's last turn that fits in whole, and left out where none does; preference pairs are whole or left out.
    Which documents share a row changes from epoch to epoch among those of the same length."""

    def plan(self, store: TokenStore, seq_len: int, name: str = "") -> PackingPlan:
        _check(store, seq_len)
        return _PackPlan(store, seq_len, name)


class _Slots(NamedTuple):
    """An epoch of Pack: the piece in each slot [P], and the rows' order [K]."""

    pieces: np.ndarray
    rows: np.ndarray


class _PackPlan(PackingPlan):
    def __init__(self, store: TokenStore, seq_len: int, name: str):
        super().__init__(name)
        self._store, self._width = store, seq_len + 1
        self._documents, self._starts, self._lengths, self.left_out = _pieces(store, seq_len)
        # slots in the order of the rows: each holds a piece of a fixed length, which one changes by the epoch
        self._by_length = np.argsort(-self._lengths, kind="stable")
        row = best_fit(self._lengths[self._by_length], self._width)
        self.rows_per_epoch = int(row.max()) + 1
        slots = np.argsort(row, kind="stable")
        self._slot_piece, self._first = slots, np.searchsorted(row[slots], np.arange(self.rows_per_epoch + 1))
        self.pairs = 0 if store.second is None else int(np.diff(self._first).max())

    def _table(self, seed: int | None, epoch: int) -> _Slots:
        pieces = self._by_length
        if seed is not None:  # a random order among the pieces of one length
            ties = generator(seed, self._name, "pieces", epoch).random(len(pieces))
            pieces = np.lexsort((ties, -self._lengths))
        return _Slots(pieces[self._slot_piece], self._permutation(seed, epoch, "rows", self.rows_per_epoch))

    def _rows(self, table: NamedTuple, indices: np.ndarray) -> Rows:
        assert isinstance(table, _Slots)
        store, out = self._store, Rows.empty(len(indices), self._width)
        for i, row in enumerate(table.rows[indices]):
            at, number = 0, 1
            for piece in table.pieces[self._first[row] : self._first[row + 1]]:
                start, length = self._starts[piece], self._lengths[piece]
                out.tokens[i, at : at + length] = store.tokens[start : start + length]
                out.documents[i, at : at + length] = number
                out.loss[i, at : at + length] = 1 if store.loss is None else store.loss[start : start + length]
                if store.second is not None and store.values is not None:
                    number += 1
                    out.documents[i, at + store.second[self._documents[piece]] : at + length] = number
                    out.values[i, at : at + length] = store.values[self._documents[piece]]
                at, number = at + length, number + 1
        return out._replace(segments=out.documents)

    def _documents_of(self, table: NamedTuple, index: int) -> np.ndarray:
        assert isinstance(table, _Slots)
        row, out = table.rows[index], np.full(self._width, -1, np.int64)
        pieces = table.pieces[self._first[row] : self._first[row + 1]]
        numbers = np.repeat(self._documents[pieces], self._lengths[pieces])
        out[: len(numbers)] = numbers
        return out


@dataclass(frozen=True)
class OnePerRow(Packing):
    """Each document in a row of its own, as prompts are that a model continues; those longer than a row are left
    out."""

    def plan(self, store: TokenStore, seq_len: int, name: str = "") -> PackingPlan:
        return _OnePerRowPlan(store, seq_len, name)


class _Order(NamedTuple):
    """An epoch of OnePerRow: the document of each row [K]."""

    rows: np.ndarray


class _OnePerRowPlan(PackingPlan):
    """Rows in which `documents` has one more than the document's number in the store."""

    def __init__(self, store: TokenStore, seq_len: int, name: str):
        super().__init__(name)
        self._store, self._width = store, seq_len + 1
        self._fitting = np.flatnonzero(store.lengths <= seq_len)
        self.rows_per_epoch = len(self._fitting)
        if not len(self._fitting):
            raise ValueError(
                f"none of its {len(store):,} documents fits in {seq_len} tokens, the shortest has "
                f"{int(store.lengths.min()):,}: raise seq_len"
            )
        if long := len(store) - self.rows_per_epoch:
            self.left_out = f"{long:,} of {len(store):,} documents are longer than {seq_len:,} tokens, and left out"

    def _table(self, seed: int | None, epoch: int) -> _Order:
        return _Order(self._fitting[self._permutation(seed, epoch, "rows", self.rows_per_epoch)])

    def _rows(self, table: NamedTuple, indices: np.ndarray) -> Rows:
        assert isinstance(table, _Order)
        tokens, documents = (np.zeros((len(indices), self._width), np.int32) for _ in range(2))
        for i, number in enumerate(table.rows[indices].tolist()):
            ids = self._store[number]
            tokens[i, : len(ids)], documents[i, : len(ids)] = ids, number + 1
        there = (documents > 0).astype(np.int32)
        return Rows(tokens, documents, there, there)

    def _documents_of(self, table: NamedTuple, index: int) -> np.ndarray:
        assert isinstance(table, _Order)
        number = int(table.rows[index])
        return np.where(np.arange(self._width) < self._store.lengths[number], number, -1)


def best_fit(lengths: np.ndarray, width: int) -> np.ndarray:
    """The row [P] of each piece: the fullest row in which it still fits, else a new one. `lengths` are in descending
    order, at most `width`."""
    rows_with: dict[int, list[int]] = {}  # free tokens -> rows
    free: list[int] = []  # the keys of rows_with that have rows, ascending
    row_of = np.empty(len(lengths), np.int64)
    count = 0
    for i, length in enumerate(lengths.tolist()):
        at = bisect_left(free, length)
        if at == len(free):
            space, row, count = width, count, count + 1
        else:
            space = free[at]
            row = rows_with[space].pop()
            if not rows_with[space]:
                del free[at]
        row_of[i] = row
        left = space - length
        if left > 1:  # a single token has no target
            if not rows_with.setdefault(left, []):
                insort(free, left)
            rows_with[left].append(row)
    return row_of


def _pieces(store: TokenStore, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """The document, the start in the store, and the length, of each piece: at most seq_len + 1 tokens, of which the
    first is the last of the piece before; and what is in none, in words. Raises ValueError where there is no piece."""
    ends, left_out, what = store.lengths, "", "conversations"
    if store.second is not None:
        ends, what = np.where(store.lengths > seq_len + 1, 0, store.lengths), "pairs"
        if dropped := int((ends == 0).sum()):
            of = f"{dropped:,} of {len(store):,} pairs"
            left_out = f"{of} are longer than a row of {seq_len:,} tokens, both sides together, and left out"
    elif store.loss is not None:
        ends = store.lengths.copy()
        for long in np.flatnonzero(ends > seq_len + 1):
            ends[long] = _kept(store, int(long), seq_len + 1)
        left_out = _left_out(store, ends, seq_len)
    counts = np.maximum(-(-(ends - 1) // seq_len), 0)  # a document of one token has no target
    if not counts.any():
        raise ValueError(f"none of its {len(store):,} {what} fits in a row of {seq_len} tokens: raise seq_len")
    document = np.repeat(np.arange(len(store)), counts)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = np.minimum(seq_len + 1, ends[document] - nth * seq_len)
    return document, store.offsets[document] + nth * seq_len, lengths, left_out


def _kept(store: TokenStore, index: int, width: int) -> int:
    """The tokens of a document, longer than `width`, that are read: all of one that carries loss throughout, which is
    plain text; else those up to the end of the last stretch with loss that fits (0: none does)."""
    assert store.loss is not None
    carries = store.loss[store.offsets[index] : store.offsets[index + 1]]
    if carries.all():
        return len(carries)
    ends = np.flatnonzero((carries[:width] > 0) & (carries[1 : width + 1] == 0))
    return int(ends[-1]) + 1 if len(ends) and ends[-1] else 0


def _left_out(store: TokenStore, ends: np.ndarray, seq_len: int) -> str:
    """How much of the conversations is left out, where each keeps its first `ends` [N] tokens."""
    cut, dropped = int(((ends > 0) & (ends < store.lengths)).sum()), int((ends == 0).sum())
    if not cut + dropped:
        return ""
    assert store.loss is not None
    kept = np.arange(store.total_tokens) < np.repeat(store.offsets[:-1] + ends, store.lengths)
    lost, of = int(store.loss[~kept].sum()), int(store.loss.sum())
    return (
        f"{cut + dropped:,} of {len(store):,} conversations are longer than a row of {seq_len:,} tokens: {cut:,} are "
        f"cut after their last turn that fits, {dropped:,} left out, together {lost:,} of {of:,} tokens with loss"
    )


def _numbered(keys: np.ndarray) -> np.ndarray:
    """The runs of equal keys in each row, numbered from 1."""
    changes = np.diff(keys, axis=1) != 0
    return 1 + np.concatenate([np.zeros((len(keys), 1), np.int64), np.cumsum(changes, axis=1)], axis=1)


def _check(store: TokenStore, seq_len: int) -> None:
    if seq_len < 1:
        raise ValueError(f"seq_len={seq_len}: expected at least 1 token")
    if not (store.lengths > 1).any():
        raise ValueError("no document has two tokens, so there is nothing to predict: give the source more text")
