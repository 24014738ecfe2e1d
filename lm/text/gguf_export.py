"""A tokenizer as the metadata of a GGUF file: the keys tokenizer.ggml.* that lm/text/gguf.py and llama.cpp read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.text.gguf import IGNORE_MERGES, PADDING, PRE, ROLE_KEYS, end_ids
from lm.text.protocol import Tokenizer
from lm.text.vocabulary import UNUSED, Vocabulary

LEFTOVER_ENDS = ("eot", "eom")  # keys for ends beside eos that are not known by their names
DEFAULT_ENDS = {"gpt2": 11, "llama": 2, "t5": 1}  # what llama.cpp takes for eos where a file has none


def to_gguf(tokenizer: Tokenizer, size: int, stop_ids: Sequence[int] = ()) -> dict[str, Any]:
    """The metadata of `tokenizer`, for an embedding of `size` rows: rows beyond its ids get unused tokens.

    Raises ValueError for a tokenizer, or more `stop_ids` than, llama.cpp expresses."""
    vocabulary = tokenizer.vocabulary()
    tokens, types = list(vocabulary.tokens[:size]), list(vocabulary.types[:size])
    if vocabulary.model == "rwkv" and len(tokens) < size:
        raise ValueError(f"llama.cpp has no unused tokens among single characters: {len(tokens)} for {size} rows")
    types += [UNUSED] * (size - len(tokens))
    tokens = [token or PADDING.format(id) for id, token in enumerate(tokens + [""] * (size - len(tokens)))]
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise ValueError(f"the tokenizer has {twice[0]!r} twice, which llama.cpp does not load")
    keys: dict[str, Any] = {"model": vocabulary.model, "tokens": tokens, "token_type": np.asarray(types, np.int32)}
    keys |= _sentencepiece(vocabulary, size) if vocabulary.scores is not None else {}
    if vocabulary.merges is not None:
        keys |= {"merges": list(vocabulary.merges), "pre": _pre(vocabulary)}
    keys |= _ids(tokenizer, tokens, vocabulary.model, stop_ids) | _around(tokenizer)
    named = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    return named | _templates(tokenizer.chat_template)


def _sentencepiece(vocabulary: Vocabulary, size: int) -> dict[str, Any]:
    assert vocabulary.scores is not None
    scores = np.zeros(size, np.float32)
    scores[: len(vocabulary.scores)] = vocabulary.scores[:size]
    keys = {
        "scores": scores,
        "add_space_prefix": vocabulary.add_space_prefix,
        "remove_extra_whitespaces": vocabulary.remove_extra_whitespaces,
    }
    charsmap = np.frombuffer(vocabulary.charsmap, np.uint8)
    return keys | ({"precompiled_charsmap": charsmap} if charsmap.size else {})


def _pre(vocabulary: Vocabulary) -> str:
    """llama.cpp's name of how a text is split, and whether words that are tokens are merged. Raises ValueError where it
    has none."""
    if not vocabulary.merges and not vocabulary.ignore_merges:
        return "gpt-2"  # single bytes, wherever a text is split
    for name, patterns in PRE.items():
        same_words = vocabulary.ignore_merges in (None, name in IGNORE_MERGES)
        if name != "default" and tuple(patterns) == vocabulary.patterns and same_words:
            return name
    how = " and ".join(vocabulary.patterns) or "not at all"
    raise ValueError(
        f"llama.cpp has no name for how this tokenizer splits a text ({how:.60}), so that ids would differ"
    )


def _ids(tokenizer: Tokenizer, tokens: Sequence[str], model: str, stop_ids: Sequence[int]) -> dict[str, int]:
    """The keys of roles and of ends."""
    roles = {role: id for role, id in tokenizer.roles.items() if id < len(tokens)}
    stops = [id for id in dict.fromkeys((*stop_ids, *tokenizer.stop_ids)) if id < len(tokens)]
    if stops:
        roles.setdefault("eos", stops[0])
    if "eos" not in roles and DEFAULT_ENDS.get(model, len(tokens)) < len(tokens):
        default = tokens[DEFAULT_ENDS[model]]
        raise ValueError(f"the tokenizer has no end of text, and llama.cpp would take {default!r} for it: give it one")
    others = [id for id in stops if id not in (roles["eos"], *end_ids(tokens))]
    if len(others) > len(LEFTOVER_ENDS):
        raise ValueError(
            f"llama.cpp takes {len(LEFTOVER_ENDS)} ends beside eos that it does not know by name, and this model has "
            f"{len(others)}: {', '.join(tokens[id] for id in others)}"
        )
    named = {ROLE_KEYS.get(role, role): id for role, id in roles.items()}
    return {f"{key}_token_id": id for key, id in {**named, **dict(zip(LEFTOVER_ENDS, others, strict=False))}.items()}


def _around(tokenizer: Tokenizer) -> dict[str, bool]:
    """The keys of what a prompt begins and ends with. Raises ValueError for other than bos and eos."""
    around = tokenizer.encode_prompt("")
    bos = tokenizer.bos is not None and around[:1] == [tokenizer.bos]
    eos = tokenizer.eos is not None and around[int(bos) :] == [tokenizer.eos]
    if len(around) != bos + eos:
        names = " ".join(map(tokenizer.name, around))
        raise ValueError(f"llama.cpp puts no more than bos and eos around a prompt, and this tokenizer {names}")
    return {"add_bos_token": bos, "add_eos_token": eos}


def _templates(template: str | Mapping[str, str] | None) -> dict[str, str]:
    key = "tokenizer.chat_template"
    if template is None or isinstance(template, str):
        return {} if template is None else {key: template}
    return {key if name == "default" else f"{key}.{name}": text for name, text in template.items()}
