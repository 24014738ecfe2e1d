"""The pages that look inside: their searches and measures, on patterns and circuits whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.inspect import induction
from experiments.inspect.coreference import SENTENCES, examples, looks, report, scores, tokens_at
from lm.inspect.look import look
from tests.inspect.circuit import circuit
from tests.pretrained.test_model import WRITER


def test_each_sentence_has_its_nouns_exchanged() -> None:
    pairs = examples()
    assert len(pairs) == 40 == len(SENTENCES)
    for one, other in pairs:
        named = [{row.text[slice(*span)] for span in (row.right, row.other)} for row in (one, other)]
        assert named[0] == named[1] and len(named[0]) == 2
        (a, b), (c, d) = ((row.right, row.other) for row in (one, other))
        assert a < b and d < c and one.text[slice(*a)] == other.text[slice(*c)]
        assert {row.text[slice(*row.it)] for row in (one, other)} == {"it"} and one.it == other.it


def test_looks_are_those_of_the_pattern() -> None:
    """Each row as it is alone, whatever is beside it."""
    rows = [one for pair in examples() for one in pair][:2]
    short = [replace(row, text=row.text[: row.it[1]]) for row in rows]
    right, other = looks(WRITER, short)
    pattern = look(WRITER.model, WRITER.params, WRITER.inputs([WRITER.encode(short[0].text)]), ["attn_pattern"]).taps
    own = np.asarray(pattern["attn_pattern"])[:, 0, :, tokens_at(WRITER, short[0].text, short[0].it)[-1]]
    start, end = (x + 1 for x in short[0].right)  # behind a bos
    np.testing.assert_allclose(right[0], own[:, :, start:end].sum(-1), rtol=1e-4)
    start, end = (x + 1 for x in short[0].other)
    np.testing.assert_allclose(other[0], own[:, :, start:end].sum(-1), rtol=1e-4)


def test_a_head_of_position_wins_half_and_no_pair() -> None:
    right, other = np.zeros((2, 8, 2, 1, 3))
    right[:, 0, 0, 0], other[:, 1, 0, 0] = 0.9, 0.9  # always the first noun
    right[:, :, 0, 1] = 0.4  # the right one
    found = scores(right, other)
    assert (found["won"][0, 0], found["exchanged"][0, 0], found["both"][0, 0]) == (1, 0, 0)
    np.testing.assert_allclose(found["margin"], [[0, 0.4, 0]], atol=1e-12)
    assert found["both"].tolist() == [[0, 1, 0]]
    lines = report(right, other)
    assert lines[1].startswith("0.1 ") and "looks more at the first noun" in lines[-2]


def test_the_steepest_window_is_about_the_jump() -> None:
    steps = np.arange(25, 1001, 25)
    assert induction.steepest(steps, 1 / (1 + np.exp(-(steps - 400) / 10))) == pytest.approx(400, abs=25)


def test_without_its_head_a_circuit_loses_what_repeats() -> None:
    """Head 0 of layer 1 is the circuit's induction head, the others of that layer do nothing."""
    model, params = circuit()
    rows, seen = np.array([[7, 0, 1, 2, 3, 0, 1]]), np.array([[False] * 5 + [True]])
    whole, ablated, others = (
        induction.lost(model, params, rows, seen, without) for without in ([], [(1, 0)], [(1, 1)])
    )
    assert whole == others < 1.3 < np.log(8) - 0.01 < ablated
