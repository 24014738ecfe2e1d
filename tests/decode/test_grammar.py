"""Constrained decoding: texts of their grammar alone, all of them, and with the model's probabilities."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm.decode.engine import Request
from lm.decode.grammar import MOST_CHARACTERS, Choice, Grammar, Grammars, JsonSchema, Matcher, Regex
from lm.decode.sampling import Sampling
from lm.decode.slots import choose, empty_slots
from lm.model.transformer import Transformer
from lm.text.protocol import IncrementalDecoder, Tokenizer
from lm.text.tokenizer import ByteTokenizer
from tests.decode.letters import grammars
from tests.decode.test_engine import LLAMA, UNROLLED, engine

BYTES = ByteTokenizer()
END = BYTES.stop_ids[0]
OF_BYTES = Grammars(BYTES, BYTES.vocab_size + 99, BYTES.stop_ids)


def ids_allowed(matcher: Matcher) -> list[int]:
    words = matcher.allowed()
    return [32 * i + bit for i, word in enumerate(words.tolist()) for bit in range(32) if word >> bit & 1]


def draw(matcher: Matcher, rng: random.Random, most: int = 3000) -> str:
    """A text of ids that are allowed, up to its end."""
    ids: list[int] = []
    for _ in range(most):
        ids.append(rng.choice(ids_allowed(matcher)))
        if ids[-1] == END or not matcher.advance(ids[-1]):
            return BYTES.decode(ids)
    raise AssertionError(f"no end: {BYTES.decode(ids)[:200]}")


def texts(grammar: Grammar, space: bool = False) -> set[str]:
    """Every text of a grammar of few."""
    found, open_ = set(), [b""]
    while open_:
        begun = open_.pop()
        matcher = OF_BYTES.constraint(grammar).begin()
        if not all(map(matcher.advance, begun)):
            found.add(begun.decode())
            continue
        for id in ids_allowed(matcher):
            (found.add(begun.decode()) if id == END else open_.append(begun + bytes([id])))
    return found


def test_choices_are_all_there_is() -> None:
    choices = ("yes", "no", "not at all", 'a "quoted"\nline', "é")
    assert texts(Choice(choices)) == set(choices)


def test_a_regular_expression_is_matched_from_end_to_end() -> None:
    expected = {a + b + c for a in ("ab", "c") for b in ("", "ab", "c") for c in ("", "x", "y")}
    assert texts(Regex("(ab|c){1,2}[xy]?")) == expected
    assert texts(Regex("a/b|(?i:y)z")) == {"a/b", "yz", "Yz"}


SCALARS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -3, "maximum": 120},
    {"type": "string", "maxLength": 4},
    {"type": "string", "enum": ["a", "b c", "\u00e9"]},
    {"type": "boolean"},
    {"const": None},
    {"type": "string", "pattern": "^[a-z]{2,3}$"},
    {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
]
NAMES = st.sampled_from(["a", "b", "c d", "\u00e9"])


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def closed(properties: dict[str, Any], optional: Sequence[str]) -> dict[str, Any]:
        required = [name for name in properties if name not in optional]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    arrays = inner.map(lambda one: {"type": "array", "items": one, "maxItems": 2})
    return arrays | st.builds(closed, st.dictionaries(NAMES, inner, max_size=3), st.lists(NAMES, max_size=2))


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.sampled_from(SCALARS), objects, max_leaves=5), st.integers(0, 2**32))
def test_what_is_drawn_meets_its_schema(schema: dict[str, Any], seed: int) -> None:
    text = draw(OF_BYTES.constraint(JsonSchema(json.dumps(schema))).begin(), random.Random(seed))
    jsonschema.validate(json.loads(text), schema)
    assert not re.search(r"\s{20}", text)


def test_whitespace_in_json_has_an_end() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    matcher = OF_BYTES.constraint(JsonSchema(json.dumps(schema))).begin()
    assert all(map(matcher.advance, b'{"a":\n' + 15 * b" "))
    assert ord(" ") in ids_allowed(matcher) and matcher.advance(ord(" "))
    assert ids_allowed(matcher) == [ord("1")]


def test_references_may_come_back_to_themselves() -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
    schema = {"$defs": {"Node": {**node, "required": ["next"], "additionalProperties": False}}, "$ref": "#/$defs/Node"}
    for seed in range(5):
        found = json.loads(draw(OF_BYTES.constraint(JsonSchema(json.dumps(schema))).begin(), random.Random(seed)))
        jsonschema.validate(found, schema)


def test_a_mask_has_a_bit_for_each_of_the_model_s_ids() -> None:
    """Of Gemma 3's, 63 more than its tokenizer's; and the id that ends a text of a model that has no such id is none
    that it draws."""
    assert len(OF_BYTES.constraint(Regex("a+")).begin().allowed()) == -(-(BYTES.vocab_size + 99) // 32) == 12
    endless = Grammars(BYTES, BYTES.vocab_size, ()).constraint(Regex("a+")).begin()
    assert endless.advance(ord("a")) and ids_allowed(endless) == [ord("a"), BYTES.vocab_size]


def test_control_ids_and_padding_are_no_text() -> None:
    matcher = OF_BYTES.constraint(Regex("[\\s\\S]*")).begin()
    assert max(ids_allowed(matcher)) == END and BYTES.bos not in ids_allowed(matcher)
    assert END not in ids_allowed(OF_BYTES.constraint(Regex("[\\s\\S]+")).begin())


class Strips(IncrementalDecoder):
    """Leaves out the space that begins a text, as SentencePiece does."""

    begun = False

    def push(self, id: int) -> str:
        text = super().push(id)
        text, self.begun = (text if self.begun else text.removeprefix(" ")), True
        return text


class Spaced(ByteTokenizer):
    def incremental_decoder(self) -> IncrementalDecoder:
        return Strips(self)


def test_a_text_that_begins_anew_has_the_space_that_its_decoder_drops() -> None:
    own = Grammars(Spaced(), 258, (END,))
    for grammar in (Choice(("x",)), Regex("x"), JsonSchema('{"const": "x"}')):
        first = {ord("x"), ord('"')} & set(ids_allowed(own.constraint(grammar, continues=True).begin()))
        assert set(ids_allowed(own.constraint(grammar, continues=True).begin())) == first
        assert ids_allowed(own.constraint(grammar).begin()) == [ord(" ")]
        assert set(ids_allowed(OF_BYTES.constraint(grammar).begin())) == first


class Pieces(Tokenizer):
    """A tokenizer that puts a space before what it encodes, and takes the longest piece."""

    def __init__(self) -> None:
        super().__init__([b" {", b"{", b"}", b" ", b"{}", b""], {5: "</s>"}, {"eos": 5})

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0, 2] if text == "{}" else [3] for text in texts]


def test_every_tokenization_of_a_text_is_allowed() -> None:
    """Of one that is the only text too, whatever the tokenizer gives for it."""
    own = Grammars(Pieces(), 6, (5,))
    for grammar in (Regex(r"\{\}"), Choice(("{}",)), JsonSchema('{"type": "object", "additionalProperties": false}')):
        assert {1, 4} <= set(ids_allowed(own.constraint(grammar).begin())) <= {0, 1, 4}


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Regex("(a"), "unclosed group"),
        (Regex(r"[^\s\S]"), "the grammar has no text"),
        (Regex("a" * (MOST_CHARACTERS + 1)), "has 65,537 characters: expected at most 65,536"),
        (JsonSchema('{"uniqueItems": true, "type": "array"}'), 'Unimplemented keys: ["uniqueItems"]'),
        (JsonSchema('{"type": "integer", "minimum": 3, "maximum": 1}'), "minimum (3) is greater than maximum (1)"),
        (JsonSchema('{"x-guidance": {}}'), "the schema has x-guidance"),
        (JsonSchema("[]"), "the schema is no object"),
        (JsonSchema('{"a":' * 70 + "1" + "}" * 70), "nested more than 64 deep"),
        (Choice(()), "expected at least one text"),
        (Choice(("a", "")), "none that is empty"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_cannot_be_drawn_is_refused(grammar: Grammar, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        OF_BYTES.constraint(grammar)


def test_tokens_have_the_model_s_probabilities_among_those_allowed() -> None:
    draws, vocab = 4000, LLAMA.vocab
    logits = np.random.default_rng(0).standard_normal(vocab).astype(np.float32)
    words = grammars(vocab).constraint(Regex("[B-F]")).begin().allowed()
    slots = empty_slots(Transformer(replace(LLAMA, context=1), UNROLLED), draws, 1, vocab)
    keys = jax.random.split(jax.random.key(0), draws)
    allowed = np.tile(words, (draws, 1))
    found, processed = jax.jit(choose)(jnp.tile(logits, (draws, 1)), slots, keys, allowed)
    weights = np.exp(logits[1:6].astype(np.float64))
    seen = np.bincount(found, minlength=vocab)
    assert seen[1:6].sum() == draws and np.isneginf(processed[0, [0, *range(6, vocab)]]).all()
    assert stats.chisquare(seen[1:6], draws * weights / weights.sum()).pvalue > 1e-3


def test_a_request_ends_where_its_grammar_has_no_more() -> None:
    constraint = grammars(LLAMA.vocab).constraint(Choice(("ABC", "DE")))
    for sampling in (Sampling(0), Sampling(5.0)):
        outputs = engine().generate([Request([1, 2], 9, sampling, (LLAMA.vocab - 1,), grammar=constraint)])[0]
        assert [output.token for output in outputs] in ([0, 1, 2], [3, 4])
        assert [output.finish_reason for output in outputs] == [""] * (len(outputs) - 1) + ["stop"]
    cut = engine().generate([Request([1, 2], 1, grammar=constraint)])[0]
    assert cut[-1].finish_reason == "length"


def test_a_parser_that_fails_ends_its_request_alone() -> None:
    constraint = grammars(LLAMA.vocab).constraint(Regex("[A-D]{9}"))
    broken = constraint.begin()
    assert not broken.failed and broken.advance(20) and broken.failed and not broken.allowed().any()

    class Broken:
        def begin(self) -> Matcher:
            return broken

    requests = [Request([1], 3, grammar=Broken()), Request([1], 3, seed=1)]  # type: ignore[arg-type]
    failed, other = engine().generate(requests)
    assert [output.finish_reason for output in failed] == ["grammar"]
    assert [output[1:] for output in other] == [output[1:] for output in engine().generate(requests[1:])[0]]
