"""The tokenizer in the metadata of a GGUF file: the keys tokenizer.ggml.*, as llama.cpp writes them.

gpt2    byte-level BPE: tokens and merges; `pre` names the patterns that split a text
llama   SentencePiece BPE: tokens, scores, types
t5      SentencePiece unigram, with the normaliser's charsmap
bert    WordPiece, the first piece of a word written with "▁" and the others without "##"
rwkv    the longest token that fits: read where each is one character
"""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.text import sentence
from lm.text.characters import CharacterTokenizer
from lm.text.export import set_prompt_template
from lm.text.protocol import ROLES, Tokenizer
from lm.text.published import (
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    QWEN2_PATTERN,
    AddedToken,
    Backend,
    Published,
    byte_level_bpe,
    wordpiece,
)
from lm.text.ranks import O200K_PATTERN
from lm.text.train import SPACE
from lm.text.vocabulary import DIGIT, UNUSED, escape

# llama.cpp's for "default", and for a file that does not say
DEFAULT_PATTERNS = (r"[\p{P}$+<=>^~|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]")
PRE: dict[str, Sequence[str]] = {
    "default": DEFAULT_PATTERNS,
    **dict.fromkeys(("gpt-2", "gpt2", "olmo", "phi-2", "mpt", "jina-v2-en"), (GPT2_PATTERN,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "exaone"), (DIGIT, GPT2_PATTERN)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (LLAMA3_PATTERN,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), (QWEN2_PATTERN,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (O200K_PATTERN,)),
}
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3", "falcon3")  # a word that is a token is not merged
# role -> its name in tokenizer.ggml.*_token_id, where another
ROLE_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
STOPS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# Tokens that end a text by their names, whatever the keys say, as in llama.cpp; without its </s>, HTML's to Gemma.
NAMES = """
    <eos> <|endoftext|> <|end_of_text|> <|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|>
    <end_of_turn> <turn|> <|tool_response> <end_of_utterance> <EOT> _<EOT> [EOT] [EOS] <｜end▁of▁sentence｜>
    <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
ENDS = frozenset(NAMES.split())
NO_VOCABULARY = ("none", "no_vocab")  # tokenizer.ggml.model of a model without a tokenizer
PADDING = "[PAD{}]"  # the name of an id that nothing has
MESSAGE_END = "<|end|>"  # of a message only, where one of these pairs ends the turn
TURN_ENDS = ({"<|return|>", "<|call|>"}, {"<|flush|>", "<|calls|>"})


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file's `metadata`. Raises ValueError for an unknown model, or a key that is missing, of
    another type or inconsistent."""
    kinds = {"gpt2": _gpt2, "llama": _llama, "t5": _t5, "bert": _bert, "rwkv": _rwkv}
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in kinds:
        part = "; the first part of a split file has it" if metadata.get("split.no") else ""
        raise ValueError(f"tokenizer.ggml.model is {kind!r}: expected one of {', '.join(kinds)}{part}")
    metadata = _without_padding(metadata)
    size = len(_tokens(metadata))
    keys = {role: ROLE_KEYS.get(role, role) for role in ROLES} | {name: name for name in STOPS}
    ids: dict[str, Any] = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in keys.items()}
    ids["sep"] = metadata.get("tokenizer.ggml.separator_token_id", ids["sep"])
    for role, id in ids.items():
        if id is not None and (type(id) is not int or not 0 <= id < size):
            raise ValueError(
                f"the {role} id {id!r} of the GGUF file is outside its vocabulary: expected 0 to {size - 1}"
            )
    known = {role: id for role, id in ids.items() if id is not None}
    roles = {role: known[role] for role in ROLES if role in known}
    tokenizer = kinds[kind](metadata, roles)
    tokenizer.chat_template = _templates(metadata)
    stops = [known[name] for name in STOPS if name in known]
    tokenizer.stop_ids = tuple(dict.fromkeys([*stops, *end_ids(_tokens(metadata))]))
    return tokenizer


def _without_padding(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """`metadata` without the unused tokens after the last one that is used, which only match the embedding's rows."""
    tokens, types = _tokens(metadata), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        return metadata
    used = [value + 1 for key, value in metadata.items() if key.endswith("_token_id") and isinstance(value, int)]
    size = len(tokens)
    while size > max(used, default=1) and types[size - 1] == UNUSED and tokens[size - 1] == PADDING.format(size - 1):
        size -= 1
    names = [f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores")]
    return {**metadata, **{name: metadata[name][:size] for name in names if isinstance(metadata.get(name), list)}}


def end_ids(tokens: Sequence[str]) -> list[int]:
    """The ids that end a text by their names."""
    present = ENDS.intersection(tokens)
    if any(pair <= present for pair in TURN_ENDS):
        present -= {MESSAGE_END}
    return [id for id, token in enumerate(tokens) if token in present]


def check_whole(metadata: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError for one part of a split GGUF file."""
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if isinstance(count, int) and count > 1:
        first = path.with_name(re.sub(r"-\d{5}(-of-\d{5})", r"-00001\1", path.name))
        raise ValueError(
            f"{path} is part {number + 1 if isinstance(number, int) else number} of {count} of a split GGUF file: "
            f"join them with llama.cpp's `llama-gguf-split --merge {first} whole.gguf`"
        )


def _templates(metadata: Mapping[str, Any]) -> str | dict[str, str] | None:
    """tokenizer.chat_template, or it and the named ones beside it."""
    key = "tokenizer.chat_template"
    found = {name: value for name, value in metadata.items() if name == key or name.startswith(f"{key}.")}
    for name, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r:.40}: expected a template")
    named = {name.removeprefix(f"{key}."): value for name, value in found.items() if name != key}
    return {**({"default": found[key]} if key in found else {}), **named} if named else found.get(key)


def _list(metadata: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """The list `name` of values of one kind. Raises ValueError where it is missing and has no default, or another."""
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if value is None:
        raise ValueError(f"the GGUF file has no tokenizer.ggml.{name}, which its vocabulary needs")
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise ValueError(f"tokenizer.ggml.{name} is {value!r:.40}: expected a list, each of type {kind.__name__}")
    return value


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    return list(_list(metadata, "tokens", str))


def _types(metadata: Mapping[str, Any]) -> list[int]:
    """The type of each token; an end is a control token, as in llama.cpp."""
    tokens = _tokens(metadata)
    types = list(_list(metadata, "token_type", int, [sentence.NORMAL] * len(tokens)))
    if len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    if odd := set(types) - set(range(sentence.NORMAL, sentence.BYTE + 1)):
        raise ValueError(f"tokenizer.ggml.token_type has {min(odd)}: expected {sentence.NORMAL} to {sentence.BYTE}")
    for id in end_ids(tokens):
        types[id] = sentence.CONTROL
    return types


def _adds(metadata: Mapping[str, Any], role: str, default: bool) -> bool:
    return bool(metadata.get(f"tokenizer.ggml.add_{role}_token", default))


def _gpt2(metadata: Mapping[str, Any], roles: Mapping[str, int]) -> Published:
    if "tokenizer.ggml.pre" not in metadata:
        warnings.warn(
            "the GGUF file does not say how a text is split (tokenizer.ggml.pre): it is split by llama.cpp's default "
            "patterns, which may not be those of its training; convert the model again with a newer llama.cpp",
            stacklevel=2,
        )
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    if pre not in PRE:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}: expected one of {', '.join(PRE)}")
    tokens = _tokens(metadata)
    merges = [_pair(line) for line in _list(metadata, "merges", str)]
    vocab = {token: id for id, token in enumerate(tokens)}
    try:
        backend = byte_level_bpe(vocab, merges, PRE[pre], ignore_merges=pre in IGNORE_MERGES)
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from None
    _add_tokens(backend, tokens, _types(metadata), roles)
    add_bos = _adds(metadata, "bos", pre in IGNORE_MERGES)
    before = [(tokens[roles["bos"]], roles["bos"])] if add_bos and "bos" in roles else []
    add_eos = _adds(metadata, "eos", False) and "eos" in roles
    set_prompt_template(backend, before, [(tokens[roles["eos"]], roles["eos"])] if add_eos else [])
    return Published(backend, roles)


def _pair(line: str) -> tuple[str, str]:
    first, space, second = line.partition(" ")
    if not (first and space and second):
        raise ValueError(f"tokenizer.ggml.merges has {line!r}: expected two tokens with a space between them")
    return first, second


def _add_tokens(backend: Backend, tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, int]) -> None:
    """Register the control tokens in `backend`, and the user-defined ones, which are matched before all others."""
    controls = {id for id, kind in enumerate(types) if kind == sentence.CONTROL} | set(roles.values())
    named = [AddedToken(tokens[id], special=True, normalized=False) for id in sorted(controls)]
    backend.add_special_tokens(named)
    defined = [token for token, kind in zip(tokens, types, strict=True) if kind == sentence.USER_DEFINED]
    backend.add_tokens([AddedToken(token, normalized=False) for token in defined])


def _llama(metadata: Mapping[str, Any], roles: Mapping[str, int]) -> sentence.SentencePiece:
    return _sentence(metadata, roles, sentence.BPE, add_bos=True, add_eos=False)


def _t5(metadata: Mapping[str, Any], roles: Mapping[str, int]) -> sentence.SentencePiece:
    return _sentence(metadata, roles, sentence.UNIGRAM, add_bos=False, add_eos=True)


def _sentence(
    metadata: Mapping[str, Any], roles: Mapping[str, int], model_type: int, add_bos: bool, add_eos: bool
) -> sentence.SentencePiece:
    tokens, scores = _tokens(metadata), _list(metadata, "scores", float)
    if len(scores) != len(tokens):
        raise ValueError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    if not all(map(math.isfinite, scores)):
        raise ValueError("tokenizer.ggml.scores has one that is not finite")
    types = _types(metadata)
    unk = types.index(sentence.UNK) if sentence.UNK in types else roles.get("unk", 0)
    types[unk] = sentence.UNK  # SentencePiece loads no model without one
    pieces = [  # llama.cpp writes user-defined pieces as they stand in a text
        token.replace(" ", SPACE) if kind == sentence.USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    charsmap = bytes(n & 255 for n in _list(metadata, "precompiled_charsmap", int, []))  # of int8 or uint8
    model = sentence.build_model(
        pieces,
        scores,
        types,
        model_type,
        dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)),
        charsmap=charsmap,
        ids={role: id for role, id in (dict(roles) | {"unk": unk}).items() if role in ("unk", "bos", "eos", "pad")},
    )
    bos, eos = _adds(metadata, "bos", add_bos), _adds(metadata, "eos", add_eos)
    try:
        return sentence.SentencePiece(model, sentence.SentencePieceOptions(roles=roles, add_bos=bos, add_eos=eos))
    except RuntimeError as error:
        raise ValueError(f"SentencePiece cannot load the vocabulary of the GGUF file: {error}") from None


def _rwkv(metadata: Mapping[str, Any], roles: Mapping[str, int]) -> CharacterTokenizer:
    tokens = _tokens(metadata)
    characters = {escape(chr(code)): chr(code) for code in range(128)}
    found = "".join(characters.get(token, "") for token in tokens)
    if len(found) != len(tokens) or list(found) != sorted(set(found)):
        raise ValueError("tokenizer.ggml.model is 'rwkv': expected one ASCII character a token, in their order")
    return CharacterTokenizer(found)


def _bert(metadata: Mapping[str, Any], roles: Mapping[str, int]) -> Published:
    tokens, types = _tokens(metadata), _types(metadata)
    names = [
        token if kind != sentence.NORMAL else token[1:] if token.startswith("▁") else "##" + token
        for token, kind in zip(tokens, types, strict=True)
    ]
    ids = {f"{role}_token": names[id] for role, id in roles.items()}
    backend = wordpiece({name: id for id, name in enumerate(names)}, ids)
    _add_tokens(backend, names, types, roles)
    return Published(backend, _bert_roles(names) | dict(roles))


def _bert_roles(names: Sequence[str]) -> dict[str, int]:
    return {role: names.index(f"[{role.upper()}]") for role in ROLES if f"[{role.upper()}]" in names}
