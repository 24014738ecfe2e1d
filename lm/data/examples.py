"""Examples of what a run learns from: documents as they stand in its first batches, and which of their tokens carry
loss."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data.loader import Batches
from lm.data.objective import CausalLM, Replies
from lm.data.preferences import PreferencePairs
from lm.text.tokenizer import Tokenizer

Marked = list[tuple[str, bool]]  # stretches of a text, and whether they carry loss


def examples(data: Batches, count: int) -> list[Marked]:
    """The first `count` documents of training, cut where their row ends; of preference pairs both sides, each under its
    name. Raises ValueError for an objective that predicts something else than the next token."""
    if not isinstance(data.objective, CausalLM):
        name = type(data.objective).__name__
        raise ValueError(f"examples show which next tokens are learned, and {name} has other targets")
    found = _documents(data)
    sides = data.objective.sides if isinstance(data.objective, PreferencePairs) else ()
    if sides:
        found = (_named(sides, each) for each in zip(*[found] * len(sides), strict=False))
    return list(itertools.islice(found, count))


def _named(sides: Sequence[str], documents: Sequence[Marked]) -> Marked:
    """Documents in one, each under the name of its side."""
    heads = (f"{side}:\n" if i == 0 else f"\n{side}:\n" for i, side in enumerate(sides))
    return [part for head, one in zip(heads, documents, strict=True) for part in ((head, False), *one)]


def _documents(data: Batches) -> Iterator[Marked]:
    for step in itertools.count():
        rows = data.rows(step)
        carried = rows.loss if isinstance(data.objective, Replies) else rows.documents
        for tokens, documents, loss in zip(rows.tokens, rows.documents, carried, strict=True):
            for number in range(1, int(documents.max()) + 1):
                own = documents == number
                yield marked(data.tokenizer, tokens[own], loss[own] > 0)


def _text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of `ids` inside a text, where a space before the first is kept."""
    return b"".join(map(tokenizer.bytes_of, ids)).decode(errors="replace")


def marked(tokenizer: Tokenizer, ids: np.ndarray, loss: np.ndarray) -> Marked:
    """The text of `ids` in stretches of equal `loss`, control ids by name. The first token has nothing before it, and
    is never predicted."""
    learned = loss & (np.arange(len(ids)) > 0)
    found: Marked = []
    for carries, group in itertools.groupby(zip(ids.tolist(), learned.tolist(), strict=True), key=lambda pair: pair[1]):
        parts = itertools.groupby((id for id, _ in group), key=lambda id: id in tokenizer.controls)
        texts = ("".join(map(tokenizer.piece, run)) if control else _text(tokenizer, run) for control, run in parts)
        found.append(("".join(texts), carries))
    return found
