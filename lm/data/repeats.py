"""Texts in which a random piece comes over and over: what only an induction head can continue (2209.11895).

Made, not downloaded, as stdlib.py's texts are.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lm.bounds import Count, check, whole
from lm.data.random import generator
from lm.data.source import Documents, Source, digest, is_train, not_empty

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-"))


@dataclass(frozen=True)
class Repeats(Source):
    """Texts of `length` letters: each a piece of `shortest` to `longest` random ones, over and over. No position tells
    where it begins again. `texts` to train on, and `heldout`.

    Raises ValueError where `longest` is not between `shortest` and `length`."""

    length: Annotated[int, whole(2)] = 64
    shortest: Count = 8
    longest: Count = 32
    texts: Count = 100_000
    heldout: Count = 500

    def __post_init__(self) -> None:
        check(self)
        if not self.shortest <= self.longest <= self.length:
            raise ValueError(f"longest={self.longest} must be {self.shortest} (shortest) to {self.length} (length)")

    def documents(self, split: str) -> Documents:
        count = self.texts if is_train(split) else self.heldout
        return not_empty(Documents(count, lambda i: self.text(split, i)), self, split)

    def piece(self, split: str, i: int) -> str:
        """What text i of `split` repeats."""
        random = generator(0, "repeats", split, i)
        return "".join(random.choice(LETTERS, random.integers(self.shortest, self.longest, endpoint=True)))

    def text(self, split: str, i: int) -> str:
        """Text i of `split`."""
        piece = self.piece(split, i)
        return (piece * (self.length // len(piece) + 1))[: self.length]

    def fingerprint(self) -> str:
        return digest(self, "repeats 1")
