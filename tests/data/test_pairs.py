"""Pairs of texts: where A and B come from, and that nothing but the text tells which."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.objective import ObjectiveContext, Rows, objective_context
from lm.data.pairs import IS_NEXT, NOT_NEXT, Pairs, paired, text_tokens
from lm.text.tokenizer import ByteTokenizer

T = 24
FRAMED = objective_context(ByteTokenizer(), T)  # cls is its bos 256, sep its eos 257
BARE = replace(FRAMED, bos=None, eos=None, cls=None, sep=None)
OWN = replace(BARE, cls=7, sep=8)


def rows_of(lengths: list[list[int]], context: ObjectiveContext) -> Rows:
    """Rows of documents of these lengths, framed as the context says, with different tokens from 1000 on."""
    width = text_tokens(context) + 1
    tokens, documents = np.zeros((len(lengths), width), np.int32), np.zeros((len(lengths), width), np.int32)
    token = 1000
    for i, row in enumerate(lengths):
        at = 0
        for number, length in enumerate(row, start=1):
            frame = [[] if id is None else [id] for id in (context.bos, context.eos)]
            ids = [*frame[0], *range(token, token + length), *frame[1]][: width - at]
            tokens[i, at : at + len(ids)], documents[i, at : at + len(ids)] = ids, number
            token, at = token + length, at + len(ids)
    return Rows(tokens, documents, documents, documents)


def generators(seed: int, rows: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, row]) for row in range(rows)]


def parts(pairs: Pairs, i: int, context: ObjectiveContext) -> tuple[list[int], list[int]]:
    """A and B of row i, its control tokens checked on the way."""
    row, types = pairs.tokens[i][pairs.segments[i] > 0].tolist(), pairs.types[i][pairs.segments[i] > 0]
    first, second = row[: (types == 0).sum()], row[(types == 0).sum() :]
    if context.cls is not None:
        assert first.pop(0) == context.cls
    if context.sep is not None:
        assert first.pop() == context.sep and second.pop() == context.sep
    return first, second


LENGTHS = st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, context=st.sampled_from([FRAMED, BARE, OWN]), seed=st.integers(0, 9))
def test_b_follows_a_inside_a_document_or_comes_from_the_other_row(lengths, context, seed) -> None:
    rows, R = rows_of(lengths, context), len(lengths) // 2
    pairs = paired(rows, context, generators(seed, R))
    assert pairs.tokens.shape == (R, T)
    np.testing.assert_array_equal(pairs.types * (pairs.segments == 0), 0)
    for i in range(R):
        first, second = parts(pairs, i, context)
        kept = rows.documents[:, :-1] * (rows.tokens[:, :-1] >= 1000)
        own, other = rows.tokens[i, :-1][kept[i] > 0].tolist(), rows.tokens[R + i, :-1][kept[R + i] > 0].tolist()
        assert first == own[: len(first)]
        assert pairs.weights[i] == (len(second) > 0)
        if not second:
            assert not other or np.bincount(kept[i][kept[i] > 0], minlength=1).max() < 2
            continue
        where = kept[i][kept[i] > 0]
        counts = np.bincount(where)
        assert where[len(first) - 1] == where[len(first)] and counts[where[len(first)]] == counts.max()
        if pairs.classes[i] == IS_NEXT:
            assert second == own[len(first) :][: len(second)]
        else:
            assert second == other[-len(second) :]


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_no_length_tells_the_class(lengths, seed) -> None:
    """Whatever the coin says, the same places are A, B and padding."""

    class Coin:
        def __init__(self, side: float, random: np.random.Generator):
            self.side, self.integers = side, random.integers

        def random(self) -> float:
            return self.side

    R = len(lengths) // 2
    rows = rows_of(lengths, FRAMED)
    follows, elsewhere = (
        paired(rows, FRAMED, [Coin(side, random) for random in generators(seed, R)]) for side in (0.9, 0.1)
    )
    assert (follows.classes == IS_NEXT).all() and (elsewhere.classes == NOT_NEXT).all()
    for name in ("types", "segments", "weights"):
        np.testing.assert_array_equal(getattr(follows, name), getattr(elsewhere, name))


def test_half_of_the_rows_go_on_and_cuts_are_anywhere() -> None:
    rows = rows_of([[T]] * 4000, BARE)
    pairs = paired(rows, BARE, generators(1, 2000))
    assert pairs.classes.mean() == pytest.approx(0.5, abs=0.035)
    firsts = T - pairs.types.sum(1)
    assert set(firsts) == set(range(1, T)) and firsts.mean() == pytest.approx(T / 2, abs=0.6)
    assert (pairs.segments == 1).all()  # rows without padding lose nothing


def test_a_row_too_short_for_two_texts() -> None:
    assert text_tokens(replace(FRAMED, seq_len=5)) == 2
    with pytest.raises(ValueError, match="seq_len=4 has no room for two texts and 3 control tokens: take at least 5"):
        text_tokens(replace(FRAMED, seq_len=4))
