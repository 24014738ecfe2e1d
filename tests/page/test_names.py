"""A name is plain text, whatever it is: in drawings, in legends, in the code of an experiment."""

import html
import io
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launch import evaluate
from lm import value
from lm.data.mixture import Mixture
from lm.data.source import TextFile
from lm.experiment import Experiment
from lm.machine.monitor import preparing
from lm.page import plots
from lm.page.markup import Markup
from lm.page.plots import Axis, Dots, Interval, Line
from lm.page.source import as_python, coloured
from tests.tiny import experiment

NAMES = [
    "$$ web",
    "$x_$",
    "$a$",
    "_base",
    "__",
    "a$b",
    r"\$",
    r"\frac{1}{2}",
    "#010101",
    "url(#x",
    ' xmlns="x"',
    "类型",
    "<b>",
]


def texts(svg: str) -> list[str]:
    return [html.unescape(text) for text in re.findall("<text[^>]*>(.*?)</text>", svg, re.DOTALL)]


def line(name: str) -> list[Any]:
    return [Line([0, 1], [1, 2], label=name), Dots([0, 1], [2, 1], label="other")]


DRAWINGS = {
    "legend": lambda name: plots.chart("c", line(name)),
    "level": lambda name: plots.chart("c", line("a"), levels={name: 1.0}),
    "ticks": lambda name: plots.chart("c", line("a"), ticks=[name, "b"]),
    "across": lambda name: plots.chart("c", line("a"), across=name),
    "interval": lambda name: plots.intervals("c", [Interval(name, 1.0, 0.0, 2.0)], name),
    "share": lambda name: plots.shares("c", [0, 1], {name: [0.5, 0.5]}),
    "parallel": lambda name: plots.parallel("c", [Axis(name, [(0.0, name)]), Axis("b", [])], [[0, 1]], 1),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_a_name_is_drawn_as_it_stands(drawing: str) -> None:
    for name in NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = texts(DRAWINGS[drawing](name))
        assert name in [text.removesuffix("  1.00") for text in drawn], drawn


def test_the_caller_s_matplotlib_stays_as_it_is() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30.0, "lines.linewidth": 7.0}):
        before = dict(matplotlib.rcParams)
        drawn = plots.chart("c", line("a"))
        assert dict(matplotlib.rcParams) == before
    assert drawn == plots.chart("c", line("a"))


def test_a_drawing_has_no_background_of_its_own() -> None:
    drawn = plots.chart("c", line("a"), right=0.5)
    assert "fill: none" in drawn and "fill: #" not in drawn


def test_a_source_s_name_is_no_markup_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate._show({"[/red]": {"loss": 1.5}})
    assert "[/red]" in capsys.readouterr().out
    out = io.StringIO()
    with preparing(Console(file=out, force_terminal=True, width=200)) as progress:
        progress("[/red], train", 1, 2)
    assert "[/red], train" in out.getvalue()


def test_a_source_may_be_called_type() -> None:
    """As the key of ours that names a class."""
    named = experiment(Path("texts")).replace(
        data=dict(mixture=Mixture({"type": TextFile("a"), "b": TextFile("b")}, {"type": 0.25, "b": 0.75}))
    )
    plain = value.plain(named)
    assert value.build(Experiment, plain) == named and value.plain(named) == plain
    weights = plain["data"]["mixture"]["weights"]
    assert as_python(weights) == "{'type': 0.25, 'b': 0.75}"
    assert "type" in re.sub("<.*?>", "", coloured({"x": weights})) and isinstance(coloured(weights), Markup)
    assert as_python(plain["data"]["mixture"]["sources"]).startswith("{'type': TextFile(path='a'")
