#!/bin/sh
# tokenizers counts the ids of added tokens on from the number of pieces: an id in tokenizer.json's added_tokens is not read.
#
# Where ids have no gaps the two are the same. Where the vocabulary has one (pieces were taken out of it, or ids kept for
# later), or the added tokens do, they get other ids than the file says, without an error or a warning in Python. What
# add_special_tokens adds to a vocabulary with a gap gets, at some point, the id of a piece: two tokens then share an
# embedding, and the piece is decoded as the control token. Seen with tokenizers 0.23.3, for BPE, WordPiece and WordLevel.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'END'
import importlib.metadata
import json

from tokenizers import Tokenizer, models

print("tokenizers", importlib.metadata.version("tokenizers"))
vocab = {"a": 0, "b": 1, "ab": 5}
kinds = {
    "BPE": models.BPE(vocab=vocab, merges=[("a", "b")]),
    "WordPiece": models.WordPiece(vocab=vocab, unk_token="a"),
    "WordLevel": models.WordLevel(vocab=vocab, unk_token="a"),
}
for kind, model in kinds.items():
    tokenizer = Tokenizer(model)
    written = json.loads(tokenizer.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    own = {"<x>": 6, "<y>": 8}
    written["added_tokens"] = [{"id": id, "content": name, "special": True, **flags} for name, id in own.items()]
    read = Tokenizer.from_str(json.dumps(written))
    found = [read.token_to_id(name) for name in own]
    names = ["<0>", "<1>", "<2>"]
    tokenizer.add_special_tokens(names)
    added = [tokenizer.token_to_id(name) for name in names]
    ids = tokenizer.encode("ab<2>").ids
    back = tokenizer.decode(ids[:1], skip_special_tokens=False)
    print(f"{kind}: added_tokens with the ids 6 and 8 are read as {found}; added after {vocab} three have {added}:")
    print(f"  'ab<2>' is {ids}, and {ids[0]} alone {back!r}")
    assert found == [3, 4], "ids of the file are read"
    assert added == [3, 4, 5] and ids == [5, 5] and back == "<2>", "the ids of pieces are not given again"
print("as seen: ids follow the number of pieces")
END
