"""Texts that repeat: nothing but their own letters says how they go on."""

import itertools

import pytest

from lm.data.repeats import Repeats


def test_what_repeats_is_known_by_its_letters_alone() -> None:
    source = Repeats(texts=20, heldout=20)
    pieces = [source.piece(split, i) for split in ("train", "heldout") for i in range(20)]
    assert len(set(pieces)) == 40 and {8, 32} <= {len(source.piece("train", i)) for i in range(200)} <= set(
        range(8, 33)
    )
    for piece, text in zip(pieces, itertools.chain(*map(source.documents, ("train", "heldout"))), strict=True):
        assert len(text) == 64 and all(text[i] == piece[i % len(piece)] for i in range(64))
    assert source.fingerprint() != Repeats(texts=20, heldout=21).fingerprint()


@pytest.mark.parametrize("fields", [dict(shortest=9, longest=8), dict(length=31)])
def test_a_piece_that_does_not_fit(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"longest=\d+ must be \d+ \(shortest\) to \d+ \(length\)"):
        Repeats(**fields)


@pytest.mark.parametrize("fields", [dict(shortest=0), dict(texts=0), dict(length=1)])
def test_numbers_out_of_bounds(fields: dict[str, int]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=f"{name}={fields[name]}"):
        Repeats(**fields)
