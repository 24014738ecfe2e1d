"""Two runs' data compared: the first step whose rows differ, and in what."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lm.data.loader import Batches
from lm.page.words import join_and

SHOWN = 4  # rows
EXCERPT = 24  # tokens


class BatchDifference(NamedTuple):
    """The first `step` (from 1) whose batches differ, `what` of them in words, and of some of the rows (number, what
    the one batch has in it, what the other)."""

    step: int
    what: str
    rows: tuple[tuple[str, str, str], ...]


def first_difference(a: Batches, b: Batches, steps: int) -> BatchDifference | None:
    """The first of so many steps for which the two have other batches; None where they have the same."""
    if a.fingerprint() == b.fingerprint():
        return None
    batches = ((step, a.batch(step), b.batch(step)) for step in range(steps))
    return next((_described(a, b, *both) for both in batches if differing_rows(*both[1:])), None)


def differing_rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[int]:
    """The rows in which two batches, arrays [B, ...] by name, differ; all, where names or shapes differ."""
    shapes = [{name: x.shape for name, x in batch.items()} for batch in (a, b)]
    if shapes[0] != shapes[1]:
        return list(range(max(len(x) for x in (*a.values(), *b.values()))))
    other = [(np.asarray(a[name]) != np.asarray(b[name])).reshape(len(a[name]), -1).any(1) for name in a]
    return [int(row) for row in np.flatnonzero(np.any(other, axis=0))]


def _described(a: Batches, b: Batches, step: int, x: Mapping[str, Any], y: Mapping[str, Any]) -> BatchDifference:
    rows = differing_rows(x, y)
    alike = all(name in y and x[name].shape == y[name].shape for name in x) and len(x) == len(y)
    named = f"row{'s' * (len(rows) > 1)} {join_and(rows, 8)}"
    if not alike:
        what = f"they have other arrays: {_arrays(x, y)} in A, {_arrays(y, x)} in B"
    elif _permuted(x, y, rows):
        what = f"{named} {'are swapped' if len(rows) == 2 else 'are in another order'}"
    else:
        what = f"{named} of {len(x['tokens'])} differ"
    shown = [(str(row), _row(a, step, row, x, y), _row(b, step, row, y, x)) for row in rows[:SHOWN]]
    return BatchDifference(step + 1, what, tuple(shown))


def _permuted(x: Mapping[str, Any], y: Mapping[str, Any], rows: list[int]) -> bool:
    """Whether these rows of the one are, in another order, those of the other."""

    def contents(batch: Mapping[str, Any]) -> list[bytes]:
        return sorted(b"".join(np.asarray(batch[name][row]).tobytes() for name in sorted(batch)) for row in rows)

    return contents(x) == contents(y)


def _arrays(x: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Those of x that the other batch has not, or in another shape."""
    own = [f"{name}{list(a.shape)}" for name, a in x.items() if name not in other or other[name].shape != a.shape]
    return join_and(own, 3) or "none besides"


def _row(batches: Batches, step: int, row: int, x: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The document of a row of x in which it differs first from the other batch, and its text from there on."""
    tokens = np.asarray(x["tokens"])
    if row >= len(tokens):
        return ""
    same = row < len(other["tokens"]) and tokens.shape[1] == other["tokens"].shape[1]
    apart = np.flatnonzero(tokens[row] != other["tokens"][row]) if same else np.zeros(1, int)
    return document(batches, step, row, int(apart[0]) if len(apart) else 0, tokens[row])


def document(batches: Batches, step: int, row: int, token: int, tokens: np.ndarray) -> str:
    """Source, number, place and text of the document that a token of a batch's row comes from.

    Args:
      batches: the run's.
      step: from 0.
      row, token: in the batch.
      tokens: of the batch's row [T]; where an objective has put others in the place of the row's own, the document is
        that of the row's first token.

    Returns: as in `words, document 12 (cat.txt): 'the cat sat'`."""
    rows = batches.rows(step, np.array([row]))
    own = rows.tokens[0, : np.count_nonzero(rows.documents[0])]  # without padding
    in_place = token < len(own) and 2 * np.count_nonzero(own[: len(tokens)] == tokens[: len(own)]) > len(tokens)
    origin = batches.origin(step, row, token if in_place else 0)
    if origin.number < 0:
        return f"{origin.source}, padding"
    text = batches.tokenizer.decode(own[(token if in_place else 0) :][:EXCERPT].tolist())
    where = f" ({origin.where})" if origin.where else ""
    return f"{origin.source}, document {origin.number}{where}: {text!r}"
