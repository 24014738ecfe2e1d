"""What the course's pages measure and draw, on models and texts whose answer is known."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.course.attention import patterns
from experiments.course.embeddings import flat
from experiments.course.figure import alone, drawings, save
from experiments.course.output import mass, repeated
from experiments.course.positions import apart
from lm.model.families import llama
from lm.model.positions import Positions
from lm.page.plots import Line, chart
from lm.pretrained import Pretrained
from tests.inspect.circuit import circuit
from tests.pretrained.test_model import SIZES, WRITER, ready

ORDERS = ("abc", "cab")


def test_without_positions_two_orders_are_the_same_set() -> None:
    """Of an encoder, but for rounding; with positions, and in a decoder by its mask, they are not."""
    plain = llama(**SIZES)
    encoder, decoder = (ready(replace(plain, causal=causal, positions=Positions())) for causal in (False, True))
    assert max(apart(encoder, ORDERS).values()) < 1e-5
    assert min(apart(ready(replace(plain, causal=False)), ORDERS).values()) > 1e-3
    assert max(apart(decoder, ORDERS).values()) > 1e-3
    for other in ("ac", "aab"):
        with pytest.raises(ValueError, match="the same pieces"):
            apart(encoder, ("ab", other))


def test_what_is_repeated_is_counted_in_fours() -> None:
    assert repeated([[1, 2, 3, 4, 5]]) == 0
    assert repeated([[1] * 7]) == pytest.approx(3 / 4)  # of four fours one is new
    assert repeated([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0  # in texts of their own


def test_mass_is_that_of_the_likeliest() -> None:
    texts = [WRITER.encode("hello")]
    cold, warm = (mass(WRITER, texts, temperature) for temperature in (0.1, 1.0))
    assert cold[-1] == pytest.approx(1, abs=1e-5) and (np.diff(warm) >= 0).all()
    assert (cold >= warm - 1e-6).all() and cold[0] > warm[0]
    p = np.asarray(WRITER.logits([texts[0]]))
    p = np.exp(p - p.max(-1, keepdims=True))
    assert warm[0] == pytest.approx(float((p.max(-1) / p.sum(-1)).mean()), rel=1e-5)


def test_the_map_is_from_the_side_of_the_largest_spread() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 5)) * [9, 5, 0.1, 0.1, 0.1]
    found = flat(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert found.var(0).sum() > 0.98 * unit.var(0).sum() and found.var(0)[0] > found.var(0)[1]


def test_the_heads_of_a_circuit_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    model, params = circuit()

    class Letters:
        def encode(self, text: str) -> list[int]:
            return ["abcdefgh".index(letter) for letter in text]

    known = Pretrained(model.cfg, params, Letters(), model)  # type: ignore[arg-type]
    first, last = patterns(known, "abcdeabc")
    assert first[np.arange(1, 8), np.arange(7)].min() > 0.9  # the token before
    assert last[6, 2] > 0.9 and last[7, 3] > 0.9  # what followed a b, and a c
    assert "layer 0, head 0: 1.00" in capsys.readouterr().out


def test_a_chart_stands_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    drawn = [chart(name, [Line([1, 2], [3, 4], name)]) for name in ("one", "two")]
    page.write_text(f"<p>{drawn[0]}</p>{drawn[1]}")
    assert drawings(page.read_text()) == {"one": drawn[0].strip(), "two": drawn[1].strip()}
    save(page, "two", tmp_path / "two.svg")
    text = (tmp_path / "two.svg").read_text()
    assert text == alone(drawn[1].strip()) and "var(--" not in text
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    with pytest.raises(ValueError, match="it has one, two"):
        save(page, "three", tmp_path / "three.svg")


def test_the_chart_of_intervals_is_drawn_of_a_study_s_table(tmp_path: Path) -> None:
    table = tmp_path / "differences.csv"
    table.write_text("arm,mean,difference,low,high\nbase,1,0,nan,nan\nother,2,1,0.5,1.5\n")
    save(table, "forest", tmp_path / "forest.svg")
    text = (tmp_path / "forest.svg").read_text()
    assert "other" in text and "less that of base" in text
