"""Gaps between the ids of a tokenizer.json, filled with unused ones.

The `tokenizers` library does not read the ids of added tokens: it counts them on from the number of pieces, in the
order of the file (findings/tokenizers-gaps-in-ids.sh).
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from lm.text.export import UNUSED

MOST = 1 << 16  # unused ids that a file may have
ADDED = re.compile(r'"added_tokens"\s*:\s*(?=\[)')  # the key: in a string its quotes are escaped


def has_other_ids(text: str, backend: Backend) -> bool:
    """Whether the library gives other ids than a tokenizer.json says, from which it has read `backend`."""
    pieces, at = backend.get_vocab(with_added_tokens=False), ADDED.search(text)
    tokens = json.JSONDecoder().raw_decode(text, at.end())[0] if at else []
    return not _is_counted(pieces.values(), _added(tokens, pieces))


def without_gaps(text: str, path: Path) -> str:
    """A tokenizer.json from which the library reads the ids that `text`, of the file at `path`, says; `text` itself,
    where it says one twice.

    Raises ValueError, naming the file, where more than MOST ids are unused."""
    content = json.loads(text)
    vocab, tokens = content["model"]["vocab"], content.get("added_tokens") or []
    is_table = isinstance(vocab, dict)
    pieces = list(vocab.values()) if is_table else list(range(len(vocab)))
    added = _added(tokens, vocab if is_table else {piece for piece, _ in vocab})
    ids = {*pieces, *added.values()}
    if _is_counted(pieces, added) or len(ids) < len(pieces) + len(added):
        return text
    if max(ids) + 1 - len(ids) > MOST:
        raise ValueError(f"{path}: its largest id is {max(ids)}, of {len(ids)}: expected at most {MOST} unused ids")
    unused = {UNUSED.format(id): id for id in range(max(ids)) if id not in ids}
    if is_table:  # an id between pieces is a piece's
        vocab |= {name: id for name, id in (added | unused).items() if id < max(pieces, default=-1)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens += [{"id": id, "content": name, "special": True, **flags} for name, id in unused.items()]
    return json.dumps({**content, "added_tokens": sorted(tokens, key=_id)}, ensure_ascii=False)


def _added(tokens: Sequence[Mapping[str, Any]], pieces: Collection[str]) -> dict[str, int]:
    """Name -> id of the added tokens that are no pieces."""
    return {token["content"]: _id(token) for token in tokens if token["content"] not in pieces}


def _is_counted(pieces: Collection[int], added: Mapping[str, int]) -> bool:
    """Whether the ids of pieces, then those of added tokens in their order, are 0, 1, 2, .."""
    count = len(pieces)
    return {*pieces} == {*range(count)} and [*added.values()] == [*range(count, count + len(added))]


def _id(token: Mapping[str, Any]) -> int:
    return int(token["id"])
