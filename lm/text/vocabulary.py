"""A tokenizer as llama.cpp knows it: tokens with types, and merges or scores.

lm/text/gguf.py reads the four kinds of its `Vocabulary` from a file's metadata, lm/text/gguf_export.py writes them. A
tokenizer.json is taken apart here: what no kind expresses is refused, in one line.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

NORMAL, UNK, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of tokens, SentencePiece's
SPACE = "▁"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"  # single digits
ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}  # of RWKV's tokens


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp is told of a tokenizer.

    Args:
      model: gpt2 (byte-level BPE), llama (SentencePiece's BPE), t5 (its unigrams), rwkv (the longest token that fits).
      tokens: of each id; "": of an id that nothing has.
      types: of the tokens.
      scores: of SentencePiece's.
      merges: of gpt2, two tokens with a space between them.
      patterns: of gpt2, by each of which in turn a text is split.
      ignore_merges: of gpt2, whether a word that is a token is not merged; None: it makes no difference.
      add_space_prefix: of SentencePiece's, whether encoding puts a space before a text.
      remove_extra_whitespaces: of SentencePiece's, whether encoding strips and collapses spaces.
      charsmap: of SentencePiece's unigrams, the compiled normalisation rules.
    """

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] | None = None
    merges: Sequence[str] | None = None
    patterns: tuple[str, ...] = ()
    ignore_merges: bool | None = None
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""


def escape(character: str) -> str:
    """An ASCII character as a token of rwkv."""
    return ESCAPES.get(character, character if character.isprintable() else f"\\x{ord(character):02x}")


# ---------------------------------------------------------------- a tokenizer.json

Json = Mapping[str, Any]


def byte_level(data: Json, size: int) -> Vocabulary:
    """The byte-level BPE of a tokenizer.json, with `size` ids. Raises ValueError for what llama.cpp does not have."""
    model = _plain_bpe(data)
    for step in _steps(data["normalizer"], "normalizers"):
        if step["type"] != "NFC":
            raise _unknown("the normalizer", step)
        warnings.warn("llama.cpp does not normalise a text, as this tokenizer does (NFC)", stacklevel=3)
    tokens, types = _tokens(data, size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    patterns = tuple(_patterns(data["pre_tokenizer"]))
    return Vocabulary(
        "gpt2", tokens, types, merges=merges, patterns=patterns, ignore_merges=bool(model["ignore_merges"])
    )


def _plain_bpe(data: Json) -> Json:
    model = data["model"]
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if model["type"] != "BPE" or odd:
        raise ValueError(f"llama.cpp has no vocabulary for a {model['type']} model of tokenizer.json {' '.join(odd)}")
    return dict(model)


def _unknown(what: str, step: Json) -> ValueError:
    return ValueError(f"llama.cpp has no vocabulary with {what} {str(dict(step))[:80]} of this tokenizer.json")


def _steps(part: Json | None, name: str) -> list[Json]:
    """The steps of a normalizer or pre-tokenizer, whose list is called `name` where it is a Sequence."""
    if part is None:
        return []
    return [s for one in part[name] for s in _steps(one, name)] if part["type"] == "Sequence" else [part]


def _patterns(part: Json | None) -> Iterator[str]:
    for step in _steps(part, "pretokenizers"):
        if step["type"] == "Split" and "Regex" in step["pattern"] and _keeps_all(step):
            yield step["pattern"]["Regex"]
        elif step["type"] == "Digits" and step["individual_digits"]:
            yield DIGIT
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            yield from [GPT2_PATTERN] if step["use_regex"] else []
        else:
            raise _unknown("the pre-tokenizer", step)


def _keeps_all(step: Json) -> bool:
    """Whether a Split keeps matches and what is between them; the patterns that are known leave nothing between."""
    return (step["behavior"], bool(step["invert"])) in (("Isolated", False), ("Removed", True))


def _tokens(data: Json, size: int) -> tuple[list[str], list[int]]:
    """The tokens of all ids and their types."""
    names = {id: token for token, id in data["model"]["vocab"].items()}
    types = dict.fromkeys(names, NORMAL)
    for token in data["added_tokens"]:
        flags = [name for name in ("lstrip", "rstrip", "single_word") if token[name]]
        if flags:
            raise ValueError(f"llama.cpp has no token that takes the spaces around it, as {token['content']!r} does")
        names[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    return [names.get(id, "") for id in range(size)], [types.get(id, UNUSED) for id in range(size)]


def sentencepiece_bpe(data: Json, size: int) -> Vocabulary:
    """SentencePiece's BPE as a tokenizer.json has it, with `size` ids. Raises ValueError for what is none."""
    model = _plain_bpe(data)
    if not model["byte_fallback"]:
        raise ValueError("llama.cpp has no BPE over characters without bytes for those outside the vocabulary")
    prefix = _prefix(data)
    tokens, types = _tokens(data, size)
    for id, token in enumerate(tokens):
        if types[id] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[id] = BYTE
    if (unk := model["vocab"].get(model["unk_token"])) is not None:
        types[unk] = UNK
    own = {token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED}
    ranks = _ranks(model, own)
    scores = [-float(ranks.get(token, len(ranks))) for token in tokens]
    runs = {"".join(pair) for pair in _pairs(model)} & own  # of spaces, which merges make of a text
    tokens = [token.replace(SPACE, " ") if token in runs else token for token in tokens]
    return Vocabulary("llama", tokens, types, scores=scores, add_space_prefix=prefix)


def _prefix(data: Json) -> bool:
    """Whether a text gets a space before it."""
    prefix = False
    for step in _steps(data["normalizer"], "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] != "Replace" or step["pattern"] != {"String": " "} or step["content"] != SPACE:
            raise _unknown("the normalizer", step)
    for step in _steps(data["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace" and step["replacement"] == SPACE and not step["split"]:
            prefix = step["prepend_scheme"] != "never"
        elif step["type"] != "Split" or step["pattern"] != {"String": " "}:  # of which the normalizer left none
            raise _unknown("the pre-tokenizer", step)
    return prefix


def _pairs(model: Json) -> list[tuple[str, ...]]:
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]


def _ranks(model: Json, own: Set[str]) -> dict[str, int]:
    """Token -> the order in which tokens are merged; `own` are user-defined, and so found before that. Raises
    ValueError where the order depends on more than the token."""
    pairs = [pair for pair in _pairs(model) if "".join(pair) not in own]
    ranks: dict[str, int] = {}
    last = ""
    for pair in pairs:
        token = "".join(pair)
        if token != last and token in ranks:
            raise ValueError(f"llama.cpp merges by the token that results, and {token!r} has merges of two ranks here")
        ranks.setdefault(token, len(ranks))
        last = token
    known, usable = set(pairs), {token for token in model["vocab"] if len(token) == 1 or token in ranks}
    for token in ranks:
        for cut in range(1, len(token)):
            a, b = token[:cut], token[cut:]
            if a in usable and b in usable and (a, b) not in known:
                raise ValueError(f"llama.cpp would merge {a!r} and {b!r}, which this tokenizer does not")
    return ranks
