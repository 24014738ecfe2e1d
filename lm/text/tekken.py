"""Mistral's tekken.json: the pieces of a byte-level BPE by rank, the pattern that splits a text, and control ids, which
come before the pieces.

The file holds more pieces than the vocabulary has ids: the first are used. Control ids without a name are fillers.
"""

from collections.abc import Mapping
from typing import Any

from lm.text.published import read_json
from lm.text.ranks import EncodingSpec, TiktokenTokenizer
from lm.text.token_fields import is_id

# of files that list none, up to version v7
UNLISTED: tuple[str, ...] = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
)
UNLISTED += ("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]")
UNLISTED += ("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
ROLES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}


def from_tekken(name: str, data: bytes) -> TiktokenTokenizer:
    """The tokenizer of the file `name`. Raises ValueError where it is damaged."""
    content = read_json(name, data)
    content = content if isinstance(content, Mapping) else {}
    config = content.get("config")
    if not isinstance(config, Mapping) or not isinstance(config.get("pattern"), str):
        raise ValueError(f"{name} is damaged: expected an object with a config that has a pattern")
    size, first = (_number(name, config, field) for field in ("default_vocab_size", "default_num_special_tokens"))
    controls = _controls(name, content.get("special_tokens"), first)
    ids = {token: id for id, token in controls.items()}
    roles = {role: ids[token] for role, token in ROLES.items() if token in ids}
    lines = _pieces(name, content.get("vocab"), size - first)
    ranks = "".join(f"{piece} {first + rank}\n" for rank, piece in enumerate(lines))
    return TiktokenTokenizer(ranks.encode(), EncodingSpec(config["pattern"], controls, roles, add_bos="bos" in roles))


def _number(name: str, config: Mapping[str, Any], field: str) -> int:
    if not is_id(config.get(field)):
        raise ValueError(f"{name} is damaged: config.{field} is {str(config.get(field))[:40]!r}, expected a number")
    return int(config[field])


def _controls(name: str, listed: Any, count: int) -> dict[int, str]:
    """The `count` control ids -> names, of those that the file lists."""
    entries: list[Any] = (
        [dict(rank=i, token_str=token) for i, token in enumerate(UNLISTED)] if listed is None else listed
    )
    if not isinstance(entries, list) or not all(map(_is_control, entries)):
        raise ValueError(f"{name} is damaged: special_tokens is no list of objects with rank and token_str")
    found = {entry["rank"]: entry["token_str"] for entry in entries}
    if found and max(found) >= count:
        raise ValueError(f"{name} is damaged: {len(found)} control ids, up to {max(found)}, of {count}")
    return {id: found.get(id, f"<SPECIAL_{id}>") for id in range(count)}


def _is_control(entry: Any) -> bool:
    return isinstance(entry, Mapping) and is_id(entry.get("rank")) and isinstance(entry.get("token_str"), str)


def _pieces(name: str, vocab: Any, count: int) -> list[str]:
    """The first `count` pieces by rank, in base64."""
    entries = vocab[:count] if isinstance(vocab, list) else []
    good = all(
        isinstance(entry, Mapping) and entry.get("rank") == rank and isinstance(entry.get("token_bytes"), str)
        for rank, entry in enumerate(entries)
    )
    if not good or len(entries) != count or count < 256:
        raise ValueError(
            f"{name} is damaged: expected a vocab of {count} pieces or more, each with rank and token_bytes"
        )
    return [entry["token_bytes"] for entry in entries]
