"""Constrained decoding: texts that match a regular expression, meet a JSON schema, or are one of several choices.

    grammars = Grammars(tokenizer, model.config.vocab, model.stop_ids)
    request = Request(ids, 64, grammar=grammars.constraint(Choice(("yes", "no"))))

llguidance keeps a parser for each text and says which tokens may come next; the engine gives the others no probability
before it draws. Grammars are compiled here, off the engine's thread.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lm.text.protocol import Tokenizer

WHITESPACE = r"\n? {0,16}"  # between the parts of JSON: were it unlimited, a greedy text might never leave it
MOST_CHARACTERS, MOST_DEPTH = 65_536, 64  # of a grammar, and of the objects in a schema


class Grammar(Protocol):
    """Which texts may be drawn."""

    def source(self, space: bool) -> str:
        """As llguidance reads it; with `space`, one space comes before the text. Raises ValueError."""


@dataclass(frozen=True)
class Regex:
    """Texts that the regular expression `pattern` (in Rust's syntax) matches from end to end."""

    pattern: str

    def source(self, space: bool) -> str:
        _check_length("the regular expression", self.pattern)
        escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", self.pattern, flags=re.DOTALL)
        return _rule(f"/{escaped}/", space)


@dataclass(frozen=True)
class JsonSchema:
    """JSON that meets `schema`, itself JSON, with its properties in their order; other keys may follow, as the standard
    has it, unless additionalProperties is false."""

    schema: str

    def source(self, space: bool) -> str:
        _check_length("the schema", self.schema)
        schema = json.loads(self.schema)
        if not isinstance(schema, dict):
            raise ValueError('the schema is no object: expected one, such as {"type": "object"}')
        if "x-guidance" in schema:
            raise ValueError("the schema has x-guidance, which is not a client's to set: leave it out")
        if _deeper_than(MOST_DEPTH, schema):
            raise ValueError(f"the schema is nested more than {MOST_DEPTH} deep: define its parts in $defs")
        bounded = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}
        return _rule(f"%json {json.dumps(bounded)}", space)


@dataclass(frozen=True)
class Choice:
    """One of `choices`."""

    choices: tuple[str, ...]

    def source(self, space: bool) -> str:
        if not self.choices or not all(self.choices):
            raise ValueError("choices: expected at least one text, and none that is empty")
        _check_length("the choices", "".join(self.choices))
        return _rule(" | ".join(map(json.dumps, self.choices)), space)


class Matcher:
    """How far a text is in its grammar."""

    def __init__(self, parser: Any, words: int):
        self._parser, self._words = parser, words

    @property
    def failed(self) -> bool:
        """Whether a limit of llguidance was met, after which nothing is allowed."""
        return bool(self._parser.is_error())

    def allowed(self) -> np.ndarray:
        """A bit for each id that may come next, uint32 [ceil(V / 32)], the first in the lowest."""
        found = np.frombuffer(self._parser.compute_bitmask(), np.uint32)[: self._words]
        return np.zeros(self._words, np.uint32) if self.failed else found

    def advance(self, token: int) -> bool:
        """Whether a text may go on behind `token`, which is allowed."""
        self._parser.consume_token(token)
        return self.failed or not self._parser.is_stopped()


@dataclass(frozen=True)
class Constraint:
    """A grammar for the tokens of a model, compiled."""

    _parser: Any
    _words: int

    def begin(self) -> Matcher:
        """For one text."""
        return Matcher(self._parser.deep_copy(), self._words)


class Grammars:
    """Grammars for the ids of `tokenizer`, of which a model has `vocab` and ends texts with one of `stop_ids`."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, stop_ids: Sequence[int]):
        self._words, known = -(-vocab // 32), min(vocab, tokenizer.vocab_size)
        ends = [id for id in stop_ids if id < known] or [vocab]  # an id that no model draws

        class Table:
            eos_token_id, bos_token_id = ends[0], tokenizer.bos
            tokens = [bytes(tokenizer.table[id]) for id in range(known)]  # control ids have none, so are no text,
            tokens += [b""] * (vocab + 1 - known)  # nor are the model's other rows: n_vocab would be ignored

            def __call__(self, text: Any) -> list[int]:
                return tokenizer.encode(text if isinstance(text, str) else text.decode(errors="replace"))

        library = _library()
        self._tokenizer = library.LLTokenizer(library.TokenizerWrapper(Table()), eos_token=ends)
        self._strips = _strips_a_space(tokenizer, known)

    def constraint(self, grammar: Grammar, continues: bool = False) -> Constraint:
        """`grammar` for texts that continue their prompt's, or begin anew: there some tokenizers (SentencePiece's) put
        a space before a text that they leave out when they decode it.

        Raises ValueError for one that is wrong, that says what llguidance does not know, or that nothing meets."""
        source = grammar.source(self._strips and not continues)
        parser = _library().LLMatcher(self._tokenizer, source, log_level=0)
        if not parser.is_error():
            Matcher(parser, self._words).allowed()
        if parser.is_error():
            raise ValueError(_message(parser.get_error()))
        return Constraint(parser, self._words)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError('grammars need llguidance, which is not installed: pip install -e ".[serve]"') from None
    return llguidance


def _rule(body: str, space: bool) -> str:
    """A grammar whose texts are those of `body`, behind a space or not. Without no_forcing, llguidance allows but one
    tokenization of what must come, the tokenizer's, and not every one."""
    return "\n".join(
        ['%llguidance {"no_forcing": true}', 'start: " " text' if space else "start: text", f"text: {body}"]
    )


def _check_length(what: str, text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{what} has {len(text):,} characters: expected at most {MOST_CHARACTERS:,}")


def _deeper_than(levels: int, value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper_than(levels - 1, one) for one in inner)


def _strips_a_space(tokenizer: Tokenizer, known: int) -> bool:
    """Whether a text that begins with a space is decoded without it."""
    spaced = (id for id in range(known) if tokenizer.table[id][:1] == b" " and id not in tokenizer.controls)
    first = next(spaced, None)
    return first is not None and not tokenizer.decode([first]).startswith(" ")


def _message(error: str) -> str:
    """What is wrong, of llguidance's account of it."""
    lines = error.splitlines()
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    said = said.rpartition("JSON schema: ")[2]
    return "the grammar has no text" if said.startswith("NoExtension") else f"the grammar cannot be used: {said}"
