"""Sums as records with a prompt, its completion and the answer: for supervised fine-tuning and for rewards.

Made, not downloaded, as stdlib.py's texts are: Conversations(Sums(), other_fields=("answer",)) or Prompts(Sums()).
"""

import functools
import json
from dataclasses import dataclass
from typing import Annotated

from lm.bounds import Share, check, whole
from lm.data.random import generator
from lm.data.source import SPLITS, Documents, Source, digest, is_train, not_empty


@dataclass(frozen=True)
class Sums(Source):
    """Every sum of two numbers `below` a bound: {"prompt": "7+12=", "completion": "<19>", "answer": "19"}. A share
    `heldout` of the pairs of numbers is held out, in both orders."""

    below: Annotated[int, whole(2, 1000)] = 100
    heldout: Share = 0.05

    def __post_init__(self) -> None:
        check(self)

    def documents(self, split: str) -> Documents:
        sums = _sums(self.below, self.heldout, SPLITS[not is_train(split)])
        return not_empty(Documents(len(sums), lambda i: sums[i]), self, split)

    def fingerprint(self) -> str:
        return digest(self, "sums 1")


@functools.lru_cache(maxsize=4)
def _sums(below: int, heldout: float, split: str) -> tuple[str, ...]:
    held = generator(0, "sums", below).random((below, below)) < heldout
    pairs = ((a, b) for a in range(below) for b in range(below) if held[max(a, b), min(a, b)] != is_train(split))
    return tuple(
        json.dumps({"prompt": f"{a}+{b}=", "completion": f"<{a + b}>", "answer": str(a + b)}) for a, b in pairs
    )
