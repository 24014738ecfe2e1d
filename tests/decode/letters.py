"""A tokenizer of single characters, the last of which ends a text, and grammars for it."""

from collections.abc import Sequence
from functools import cache

from lm.decode.grammar import Grammars
from lm.text.protocol import Tokenizer

FIRST = ord("A")


class Letters(Tokenizer):
    """`count` ids: "A", "B" and so on, and an end."""

    def __init__(self, count: int):
        table = [chr(FIRST + id).encode() for id in range(count - 1)]
        super().__init__([*table, b""], {count - 1: "</s>"}, {"eos": count - 1})

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(character) - FIRST for character in text] for text in texts]


@cache
def grammars(count: int) -> Grammars:
    """For a model of `count` ids."""
    return Grammars(Letters(count), count, (count - 1,))
