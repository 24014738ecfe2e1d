"""Documents as tokens: what a source makes of its texts, and a store keeps."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.text.protocol import first_token_bytes
from lm.text.tokenizer import Tokenizer


class BadDocument(ValueError):
    """A document that has no tokens since it is no such thing as its source says."""


class Encoded(NamedTuple):
    """A document of n tokens: its `ids` [n], and whether each carries `loss` ([n] bool; None: all do); the UTF-8
    `bytes` of its text, of which `first_bytes` are those of a first token that nothing predicts.

    Of a document of two sequences, such as a preference pair, the second begins at token `second` (0: there is one
    sequence), and `value` is its number, such as a margin. `dropped` says why it is left out, "" where it is not."""

    ids: np.ndarray
    loss: np.ndarray | None
    bytes: int
    first_bytes: int
    second: int = 0
    value: float = 0.0
    dropped: str = ""


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Each of `texts` as [bos] + its tokens + [eos], where the tokenizer has them. Raises ValueError for an id outside
    the vocabulary."""
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        first = first_token_bytes(tokenizer, text, ids) if tokenizer.bos is None else 0
        yield Encoded(framed(ids, tokenizer), None, len(text.encode()), first)


def framed(ids: Iterable[int], tokenizer: Tokenizer) -> np.ndarray:
    """[bos] + ids + [eos], checked against the vocabulary."""
    before, after = ([] if id is None else [id] for id in (tokenizer.bos, tokenizer.eos))
    return checked(itertools.chain(before, ids, after), tokenizer)


def checked(ids: Iterable[int], tokenizer: Tokenizer) -> np.ndarray:
    """`ids` as an array. Raises ValueError for one outside the vocabulary."""
    array = np.fromiter(ids, np.int64)
    wrong = array[(array < 0) | (array >= tokenizer.vocab_size)]
    if wrong.size:
        raise ValueError(f"token id {wrong[0]} is outside the vocabulary: expected 0 to {tokenizer.vocab_size - 1}")
    return array
