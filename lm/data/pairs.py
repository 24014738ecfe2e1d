"""Pairs of texts for next-sentence prediction: the second follows the first, or comes from elsewhere (BERT, 1810.04805,
section 3.1, task 2).

A row becomes [cls] A [sep] B [sep]. A is the row's text up to a cut inside its longest document; B is, in half of the
rows, what follows the cut, and in the others the end of another row of the same source. B is as long as either could
be, so that its length does not reveal the class. bos and eos stand in for a missing cls and sep.
"""

from typing import NamedTuple

import numpy as np

from lm.data.objective import ObjectiveContext, Rows

IS_NEXT, NOT_NEXT = 0, 1  # the classes, in the order of BERT and Hugging Face
MIN_TOKENS = 2  # of text in a row: one of A, one of B


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


def text_tokens(context: ObjectiveContext) -> int:
    """The tokens of A and B that fit in a row. Raises ValueError where there are too few."""
    controls = sum(map(len, _controls(context)))
    if context.seq_len < controls + MIN_TOKENS:
        raise ValueError(
            f"seq_len={context.seq_len} has no room for two texts and {controls} control tokens: "
            f"take at least {controls + MIN_TOKENS}, or next_sentence=False in the objective"
        )
    return context.seq_len - controls


def paired(rows: Rows, context: ObjectiveContext, random: list[np.random.Generator]) -> Pairs:
    """The pairs made of 2R rows (of `text_tokens` + 1 each): row i is the text, row R + i the other one. `random` has a
    generator for each pair."""
    R, T = len(random), rows.tokens.shape[1] - 1 + sum(map(len, _controls(context)))
    tokens, documents, segments, types = (np.zeros((R, T), np.int32) for _ in range(4))
    out = Pairs(tokens, documents, segments, types, np.zeros(R, np.int32), np.zeros(R, np.float32))
    texts = [_text(tokens, documents, context) for tokens, documents in zip(rows.tokens, rows.documents, strict=True)]
    for i in range(R):
        class_ = NOT_NEXT if random[i].random() < 0.5 else IS_NEXT
        first, second = _parts(texts[i], texts[R + i], class_, random[i])
        for array, values in zip(out, _framed(first, second, context), strict=False):
            array[i, : len(values)] = values
        out.classes[i], out.weights[i] = class_, len(second.tokens) > 0
    return out


def _text(tokens: np.ndarray, documents: np.ndarray, context: ObjectiveContext) -> _Text:
    """A row without its last token (the first of the next row), its padding, and its documents' control tokens."""
    frames = [id for id in (context.bos, context.eos, context.cls, context.sep) if id is not None]
    kept = (documents[:-1] > 0) & ~np.isin(tokens[:-1], frames)
    return _Text(tokens[:-1][kept], documents[:-1][kept])


def _parts(text: _Text, other: _Text, class_: int, random: np.random.Generator) -> tuple[_Text, _Text]:
    """A and B."""
    cut, end = _cut(text.documents, random), len(other.tokens)
    length = min(len(text.tokens) - cut, end)
    second = other.part(end - length, end) if class_ == NOT_NEXT else text.part(cut, cut + length)
    return text.part(0, cut), second


def _cut(documents: np.ndarray, random: np.random.Generator) -> int:
    """A position with a token of the longest document on either side; the end, where no document has two tokens."""
    _, starts, counts = np.unique(documents, return_index=True, return_counts=True)
    if counts.max(initial=0) < MIN_TOKENS:
        return len(documents)
    longest = int(counts.argmax())
    return int(starts[longest] + random.integers(1, counts[longest]))


def _framed(first: _Text, second: _Text, context: ObjectiveContext) -> tuple[np.ndarray, ...]:
    """The tokens, documents, segments and types of a row, unpadded. Control tokens belong to no document (0)."""
    cls, sep = _controls(context)[:2]
    later = second.documents + first.documents.max(initial=0)
    tokens = np.concatenate([cls, first.tokens, sep, second.tokens, sep])
    none = [np.zeros(len(ids), np.int32) for ids in (cls, sep)]
    documents = np.concatenate([none[0], first.documents, none[1], later, none[1]])
    types = np.arange(len(tokens)) >= len(cls) + len(first.tokens) + len(sep)
    return tokens, documents, np.ones(len(tokens), np.int32), types


def _controls(context: ObjectiveContext) -> tuple[list[int], list[int], list[int]]:
    """The control tokens before A, after A, and after B."""
    cls, sep = ([] if id is None else [id] for id in (context.cls, context.sep))
    return cls, sep, sep
