"""The scales of a chart: the ends of its curves are on them."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.page import plots
from lm.page.plots import HALF, WIDE, Line, chart, shares, with_ends


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (range(5, 241, 5), ["5", "50", "100", "150", "200", "240"]),
        ((1, 2), ["1", "2"]),
        ((7,), ["7"]),
        ((0, 123_456), ["0", "123k"]),
    ],
)
def test_the_first_and_the_last_step_are_on_the_scale(x: Sequence[int], shown: list[str]) -> None:
    found = texts(chart("a", [Line(x, [float(i) for i in x])]))
    assert [text for text in shown if text not in found] == []


@pytest.mark.parametrize("size", [HALF, WIDE])
@pytest.mark.parametrize(
    ("values", "named", "options"),
    [
        ((0.2, 1.0), 0, {}),
        ((1e-9, 3e-9), 2, {}),
        ((12_345.0, 987_654_321.0), 7, {"right": 1e-10}),
        ((0.0101, 0.0102), 4, {"percent": True, "across": "tokens"}),
        ((5.0, 6.0), 3, {"ticks": ("an arm", "and another arm")}),
        ((5.0, 6.0), 0, {"log": True}),
    ],
)
def test_all_that_stands_around_the_axes_is_inside_the_drawing(
    values: Sequence[float], named: int, options: dict[str, Any], size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at a page's width no tenth of it is lost at an edge."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "svg", lambda figure, name: figures.append(figure) or "")
    x = (1, 2_000_000) if "ticks" not in options else (0, 1)
    chart(
        "a",
        [Line(x, values, label="a source" if i < named else "") for i in range(max(named, 1))],
        size=size,
        **options,
    )
    shares("a", (0, 99_999), {f"source {i}": (0.5, 0.5) for i in range(max(named, 1))}, size)
    for figure in figures:
        figure.canvas.draw()
        box = figure.get_tightbbox()
        lost = (box.x0, box.y0, size[0] - box.x1, size[1] - box.y1)
        assert min(lost) >= -0.01 and max(lost) < 0.35, lost


def test_the_scale_encloses_the_values() -> None:
    values = [8.13, 6.0, 5.05]
    found = [float(text) for text in texts(chart("a", [Line([1, 2, 3], values)])) if re.fullmatch(r"\d\.\d+", text)]
    assert min(found) <= 5.05 and max(found) >= 8.13
    cut = [float(t) for t in texts(chart("a", [Line([1, 2, 3], values)], top=6.5)) if re.fullmatch(r"\d\.\d+", t)]
    assert max(cut) <= 6.5


@given(st.lists(st.integers(0, 10**6), max_size=12), st.integers(0, 10**6), st.integers(0, 10**6))
def test_ticks_have_the_ends_and_room(ticks: list[int], one: int, other: int) -> None:
    low, high = sorted((one, other))
    found = with_ends(sorted(set(ticks)), low, high)
    assert found[0] == low and found[-1] == high and found == sorted(set(found))
    if len(found) > 2:
        assert min(found[1] - low, high - found[-2]) > 0.08 * (high - low)
