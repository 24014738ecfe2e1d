#!/bin/sh
# llguidance allows of a text that is the only one possible only the tokenization that the tokenizer gives it.
#
# Where a grammar forces the next bytes, the mask has one token, the first of what encoding these bytes by themselves
# gives. A tokenizer that puts a space before what it encodes (SentencePiece's dummy prefix) gives one that begins with
# the space: it is the only one allowed, and consuming it is an error. Where the bytes are not forced, every token that
# fits is allowed, so a mask is not what the grammar says of a token. `%llguidance {"no_forcing": true}` turns it off.
# Seen with llguidance 1.9.1.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1
"$folder/venv/bin/python" - <<'END'
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

PIECES = [b" {", b"{", b"}", b"{}", b" ", b""]


class Spaced:
    """Six pieces; a text is encoded with a space before it."""

    eos_token_id, bos_token_id, tokens = 5, None, PIECES

    def __call__(self, text):
        return [0, 2] if text in ("{}", b"{}") else [4]


tokenizer = LLTokenizer(TokenizerWrapper(Spaced()), eos_token=[5])


def first(grammar):
    """The tokens that may come first, and whether the parser takes the lowest of them."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    (bits,) = matcher.compute_bitmask()[:1]
    allowed = [id for id in range(len(PIECES)) if bits >> id & 1]
    return [PIECES[id] for id in allowed], matcher.consume_token(allowed[0])


forced, free = first("start: /\\{\\}/"), first('%llguidance {"no_forcing": true}\nstart: /\\{\\}/')
print(f"one text, {{}}: allowed first, and taken: {forced}; with no_forcing: {free}")
assert forced == ([b" {"], False), "the mask of forced bytes is another"
assert free == ([b"{", b"{}"], True), "no_forcing allows other tokens"
END
