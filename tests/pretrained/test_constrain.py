"""Texts of a grammar, of a loaded model."""

from dataclasses import replace

import pytest

from lm.decode.grammar import Choice, Grammar, JsonSchema, Regex
from lm.decode.sampling import Sampling
from lm.model.transformer import Transformer
from lm.pretrained.constrain import constrained
from lm.pretrained.model import Pretrained
from lm.text.tokenizer import ByteTokenizer
from tests.model.reference import LLAMA, SIMPLE, lively

TOKENIZER = ByteTokenizer()
CONFIG = replace(LLAMA, vocab=TOKENIZER.vocab_size + 5, context=64)
MODEL = Pretrained(CONFIG, lively(CONFIG), TOKENIZER, Transformer(CONFIG, SIMPLE))


def texts(grammar: Grammar, most: int = 32, n: int = 1, seed: int = 0) -> list[str]:
    parts = list(constrained(MODEL, "Yes or no?", grammar, most, Sampling(), seed, n))
    return ["".join(part[i] for part in parts) for i in range(n)]


def test_texts_are_of_the_grammar_and_each_has_draws_of_its_own() -> None:
    found = texts(Regex("[ab]{6}"), n=4)
    assert all(set(text) <= {"a", "b"} and len(text) == 6 for text in found) and len(set(found)) > 1
    assert texts(Regex("[ab]{6}"), n=2) == found[:2]
    assert set(texts(Choice(("yes", "no")), n=4)) <= {"yes", "no"}


def test_a_text_that_is_cut_is_the_beginning_of_one() -> None:
    (text,) = texts(JsonSchema('{"const": {"a": 1}}'), most=4)
    assert len(text) == 4 and '{"a":1}'.startswith("".join(text.split()))


def test_what_has_no_text_is_told() -> None:
    with pytest.raises(ValueError, match="the grammar has no text"):
        texts(Regex("[^\\s\\S]"))
