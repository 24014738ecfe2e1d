#!/bin/sh
# llguidance ignores n_vocab where a tokenizer is given by a TokenizerWrapper: masks have the tokenizer's size.
#
# LLTokenizer's docstring has n_vocab override the size of the vocabulary. Models often have more rows than their
# tokenizer has ids (Gemma 3: 262,208 and 262,145), and a sampler wants a bit for each of the model's. Given a number,
# nothing is said, vocab_size stays the tokenizer's, compute_bitmask has that many bits rounded up to 32, and an end of
# text among the other ids is out of range. Empty tokens at the end of the wrapper's list give the wanted size, and are
# allowed nowhere. Seen with llguidance 1.9.1.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1
"$folder/venv/bin/python" - <<'END'
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

KNOWN, ROWS = 40, 100


class Letters:
    """An end of text and 39 letters; `more` empty tokens."""

    eos_token_id, bos_token_id = 0, None

    def __init__(self, more=0):
        self.tokens = [b"", *(bytes([64 + i]) for i in range(1, KNOWN)), *[b""] * more]

    def __call__(self, text):
        return [ord(letter) - 64 for letter in text]


def seen(tokenizer):
    """(vocab_size, words of a mask, the ids that may come first) where any letters are a text."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark("start: /[A-Z]+/"), log_level=0)
    mask = int.from_bytes(matcher.compute_bitmask(), "little")
    words = len(matcher.compute_bitmask()) // 4
    return tokenizer.vocab_size, words, [id for id in range(32 * words) if mask >> id & 1]


letters = list(range(1, 27))
given = seen(LLTokenizer(TokenizerWrapper(Letters()), n_vocab=ROWS))
padded = seen(LLTokenizer(TokenizerWrapper(Letters(ROWS - KNOWN))))
print(f"n_vocab={ROWS}: a vocabulary of {given[0]}, {given[1]} words a mask; padded: {padded[0]}, {padded[1]}")
assert given == (KNOWN, 2, letters), "n_vocab is no longer ignored"
assert padded == (ROWS, 4, letters), "empty tokens do not pad the mask"
try:
    LLTokenizer(TokenizerWrapper(Letters()), n_vocab=ROWS, eos_token=[ROWS - 1])
except ValueError as error:
    print(f"an end of text among the model's other ids: {error}")
else:
    raise SystemExit("an end of text may lie behind the tokenizer's ids now")
END
