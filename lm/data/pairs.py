"""Pairs of texts, of which the second follows the first or comes from elsewhere: what next-sentence prediction asks
(BERT, 1810.04805, section 3.1, task 2).

A row becomes [cls] A [sep] B [sep]. A is the row's text up to a place inside its longest document, B in half of the
rows what follows there, in the others the end of another row of the same source. B is as long as both could be, so that
no length tells which it is. A tokenizer without cls has its bos there, one without sep its eos, or nothing.
"""

from typing import NamedTuple

import numpy as np

from lm.data.objective import Rows, Setting

FOLLOWS, ELSEWHERE = 0, 1  # the classes, in BERT's and Hugging Face's order
SHORTEST = 2  # tokens of text in a row: one of A, one of B


class Pairs(NamedTuple):
    """R rows of T tokens: `tokens`, `documents`, `segments` (1, 0 is padding) and `types` (0 up to the first sep, 1
    after it, 0 padding) [R, T] int32; `classes` [R] int32, with `weights` [R] float32 (0: there is no B)."""

    tokens: np.ndarray
    documents: np.ndarray
    segments: np.ndarray
    types: np.ndarray
    classes: np.ndarray
    weights: np.ndarray


class _Text(NamedTuple):
    """Tokens and the numbers of their documents, both [n]."""

    tokens: np.ndarray
    documents: np.ndarray

    def part(self, start: int, stop: int) -> "_Text":
        return _Text(self.tokens[start:stop], self.documents[start:stop])


def text_tokens(setting: Setting) -> int:
    """The tokens of A and B that fit in a row. Raises ValueError where those are too few."""
    controls = sum(map(len, _controls(setting)))
    if setting.seq_len < controls + SHORTEST:
        raise ValueError(
            f"seq_len={setting.seq_len} has no room for two texts and {controls} control tokens: "
            f"take at least {controls + SHORTEST}, or objective.next_sentence=False"
        )
    return setting.seq_len - controls


def paired(rows: Rows, setting: Setting, random: list[np.random.Generator]) -> Pairs:
    """The pairs of the first R of 2R rows (of `text_tokens` + 1 each), whose others are the last R; `random` has one
    generator for each."""
    R, T = len(random), rows.tokens.shape[1] - 1 + sum(map(len, _controls(setting)))
    tokens, documents, segments, types = (np.zeros((R, T), np.int32) for _ in range(4))
    out = Pairs(tokens, documents, segments, types, np.zeros(R, np.int32), np.zeros(R, np.float32))
    texts = [_text(tokens, documents, setting) for tokens, documents in zip(rows.tokens, rows.documents, strict=True)]
    for i in range(R):
        class_ = ELSEWHERE if random[i].random() < 0.5 else FOLLOWS
        first, second = _parts(texts[i], texts[R + i], class_, random[i])
        for array, values in zip(out, _framed(first, second, setting), strict=False):
            array[i, : len(values)] = values
        out.classes[i], out.weights[i] = class_, len(second.tokens) > 0
    return out


def _text(tokens: np.ndarray, documents: np.ndarray, setting: Setting) -> _Text:
    """A row without its last token, which the next one has too, its padding and what frames its documents."""
    frames = [id for id in (setting.bos, setting.eos, setting.cls, setting.sep) if id is not None]
    kept = (documents[:-1] > 0) & ~np.isin(tokens[:-1], frames)
    return _Text(tokens[:-1][kept], documents[:-1][kept])


def _parts(text: _Text, other: _Text, class_: int, random: np.random.Generator) -> tuple[_Text, _Text]:
    """A and B."""
    cut, end = _cut(text.documents, random), len(other.tokens)
    length = min(len(text.tokens) - cut, end)
    second = other.part(end - length, end) if class_ == ELSEWHERE else text.part(cut, cut + length)
    return text.part(0, cut), second


def _cut(documents: np.ndarray, random: np.random.Generator) -> int:
    """A place with a token of the longest document on either side; the end, where no document has two."""
    _, starts, counts = np.unique(documents, return_index=True, return_counts=True)
    if counts.max(initial=0) < SHORTEST:
        return len(documents)
    longest = int(counts.argmax())
    return int(starts[longest] + random.integers(1, counts[longest]))


def _framed(first: _Text, second: _Text, setting: Setting) -> tuple[np.ndarray, ...]:
    """The tokens, documents, segments and types of a row, without padding. The control tokens are of no document."""
    cls, sep = _controls(setting)[:2]
    later = second.documents + first.documents.max(initial=0)
    tokens = np.concatenate([cls, first.tokens, sep, second.tokens, sep])
    none = [np.zeros(len(ids), np.int32) for ids in (cls, sep)]
    documents = np.concatenate([none[0], first.documents, none[1], later, none[1]])
    types = np.arange(len(tokens)) >= len(cls) + len(first.tokens) + len(sep)
    return tokens, documents, np.ones(len(tokens), np.int32), types


def _controls(setting: Setting) -> tuple[list[int], list[int], list[int]]:
    """What stands before A, after it, and after B."""
    cls, sep = ([] if id is None else [id] for id in (setting.cls, setting.sep))
    return cls, sep, sep
