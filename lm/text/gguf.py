"""The tokenizer in the metadata of a GGUF file: the keys tokenizer.ggml.*, as llama.cpp writes them.

gpt2    byte-level BPE: tokens and merges; `pre` names the patterns that split a text
llama   SentencePiece BPE: tokens, scores, types
t5      SentencePiece unigram, with the normaliser's charsmap
bert    WordPiece, the first piece of a word written with "▁" and the others without "##"
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lm.text import sentence
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

DIGIT = r"\p{N}"  # single digits
PRE: dict[str, Sequence[str]] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "olmo", "phi-2", "mpt", "jina-v2-en"), (GPT2_PATTERN,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "exaone"), (DIGIT, GPT2_PATTERN)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (LLAMA3_PATTERN,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), (QWEN2_PATTERN,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (O200K_PATTERN,)),
}
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3", "falcon3")  # a word that is a token is not merged
# role -> its name in tokenizer.ggml.*_token_id, where another
ROLE_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
STOPS = ("eos", "eot", "eom")


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file's `metadata`. Raises ValueError for an unknown model, or a key that is missing or
    inconsistent."""
    kinds = {"gpt2": _gpt2, "llama": _llama, "t5": _t5, "bert": _bert}
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in kinds:
        raise ValueError(f"tokenizer.ggml.model is {kind!r}: expected one of {', '.join(kinds)}")
    ids = {role: metadata.get(f"tokenizer.ggml.{ROLE_KEYS.get(role, role)}_token_id") for role in ROLES}
    ids["sep"] = metadata.get("tokenizer.ggml.separator_token_id", ids["sep"])
    size = len(_key(metadata, "tokens"))
    roles = {role: int(id) for role, id in ids.items() if id is not None}
    for role, id in roles.items():
        if not 0 <= id < size:
            raise ValueError(f"the {role} id {id} of the GGUF file is outside its vocabulary: expected 0 to {size - 1}")
    tokenizer = kinds[kind](metadata, roles)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    stops = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in STOPS]
    tokenizer.stop_ids = tuple(dict.fromkeys(int(id) for id in stops if id is not None))
    return tokenizer


def _key(metadata: Mapping[str, Any], name: str) -> Any:
    if (value := metadata.get(f"tokenizer.ggml.{name}")) is None:
        raise ValueError(f"the GGUF file has no tokenizer.ggml.{name}, which its vocabulary needs")
    return value


def _types(metadata: Mapping[str, Any]) -> list[int]:
    tokens = _key(metadata, "tokens")
    types = [int(t) for t in metadata.get("tokenizer.ggml.token_type") or [sentence.NORMAL] * len(tokens)]
    if len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    return types


def _adds(metadata: Mapping[str, Any], role: str, default: bool) -> bool:
    return bool(metadata.get(f"tokenizer.ggml.add_{role}_token", default))


def _gpt2(metadata: Mapping[str, Any], roles: Mapping[str, int]) -> Published:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in PRE:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}: expected one of {', '.join(PRE)}")
    tokens = _key(metadata, "tokens")
    merges = [_pair(line) for line in _key(metadata, "merges")]
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
    tokens, scores = _key(metadata, "tokens"), _key(metadata, "scores")
    if len(scores) != len(tokens):
        raise ValueError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    types = _types(metadata)
    unk = types.index(sentence.UNK) if sentence.UNK in types else roles.get("unk", 0)
    types[unk] = sentence.UNK  # SentencePiece loads no model without one
    charsmap = bytes(bytearray(metadata.get("tokenizer.ggml.precompiled_charsmap") or b""))
    model = sentence.build_model(
        tokens,
        [float(score) for score in scores],
        types,
        model_type,
        dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)),
        charsmap=charsmap,
        ids={role: id for role, id in (dict(roles) | {"unk": unk}).items() if role in ("unk", "bos", "eos", "pad")},
    )
    bos, eos = _adds(metadata, "bos", add_bos), _adds(metadata, "eos", add_eos)
    return sentence.SentencePiece(model, sentence.SentencePieceOptions(roles=roles, add_bos=bos, add_eos=eos))


def _bert(metadata: Mapping[str, Any], roles: Mapping[str, int]) -> Published:
    tokens, types = _key(metadata, "tokens"), _types(metadata)
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
