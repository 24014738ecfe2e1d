"""What pretraining measures of a held-out text."""

import math
from pathlib import Path

import pytest

from lm.data.store import write_store
from lm.text.tokenizer import Bytes, Characters
from lm.tune.pretrain import measured

TEXTS = ["hello", "naïve", "x" * 90]


def test_measures_are_means_and_bits_per_byte_those_of_coding_the_text(tmp_path: Path) -> None:
    """A model that gives each of 256 ids the same share needs 8 bits for each token but a document's first: for its
    bytes and the eos."""
    store = write_store(TEXTS, Bytes().make([]), tmp_path / "store")
    size = sum(len(text.encode()) for text in TEXTS)
    sums = {"loss": 40 * math.log(256), "accuracy": 10.0, "tokens": 40.0, "next_sentence": 3.0, "pairs": 4.0}
    assert measured(sums, store) == pytest.approx(
        {
            "loss": math.log(256),
            "perplexity": 256,
            "accuracy": 0.25,
            "next_sentence": 0.75,
            "bits_per_byte": 8 * (size + len(TEXTS)) / size,
        }
    )


@pytest.mark.parametrize(("spec", "ends"), [(Bytes(), 1), (Characters(), 0)])
def test_bits_per_byte_are_the_entropy_whether_a_text_has_a_begin_token_or_not(spec, ends: int, tmp_path: Path) -> None:
    """Of 8 letters, each one of 16 alike: 4 bits a byte for the perfect model, which knows when the text ends."""
    texts = ["abcdefgh", "ponmlkji"] * 5
    store = write_store(texts, spec.make(texts), tmp_path / "store")
    targets = store.total_tokens - len(store)
    letters = targets - ends * len(store)
    assert measured({"loss": letters * math.log(16), "accuracy": 0.0, "tokens": targets}, store)[
        "bits_per_byte"
    ] == pytest.approx(4)
