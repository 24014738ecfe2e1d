"""Drawings as SVG text for a page, in the colours of its style sheet: right on a light screen, a dark one and paper.

Matplotlib draws with placeholder colours, which become CSS variables: --ink, --muted, --line, and --c0 to --c5 for
series. The same numbers give the same bytes, and the caller's matplotlib settings stay as they are. Matplotlib is
imported when the first chart is drawn: it takes half a second."""

import functools
import io
import re
import warnings
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

P = ParamSpec("P")
COLOURS = 6
INK, MUTED, LINE = "#010101", "#020202", "#030303"  # placeholders; see `svg`
DASHED = dict(color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
FONT, EDGE = 8.5, 3.0  # points: of the letters; around a drawing
TICK_PAD, LABEL_PAD = 3.5, 4.0  # matplotlib's, between axes, ticks and label
STYLE = {
    "svg.fonttype": "none",
    "font.size": FONT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "axes.xmargin": 0.01,
    "path.simplify_threshold": 0.3,
}


def series_colour(index: int) -> str:
    """The placeholder of a series' colour; grey for -1."""
    return f"#0a0a{index % COLOURS:02x}" if index >= 0 else MUTED


def load() -> None:
    """Import Matplotlib ahead of the first chart, by a process that waits for something else."""
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401


def drawing(draw: Callable[P, str]) -> Callable[P, str]:
    """`draw` under the settings of these drawings, and no others."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib

        default = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
        with matplotlib.rc_context({**default, **STYLE}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has others
            return draw(*args, **kwargs)

    return styled


def literal(text: str) -> str:
    """`text` as matplotlib shows it literally: without formulas between dollar signs."""
    return text.replace("$", r"\$")


def new_axes(name: str, size: tuple[float, float], placed: bool = True) -> tuple[Any, Any]:
    """A matplotlib figure of `size` inches and its axes, with horizontal grid lines, inside a function that is a
    `drawing`. `name` (letters) keeps the drawing's ids apart from those of other drawings on the page. The axes are
    `placed` by Matplotlib's layout, or by `make_room`."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = name
    layout: Literal["constrained"] | None = "constrained" if placed else None
    figure = Figure(figsize=size, layout=layout)  # not pyplot: it would keep every figure, and look for a screen
    FigureCanvasSVG(figure)
    figure.patch.set_facecolor("none")
    axes = figure.add_subplot()
    axes.patch.set_facecolor("none")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def make_room(axes: Any, legend_rows: int = 0, right: int = 0) -> None:
    """Give axes on which all is drawn their place, from the numbers of letters that stand outside of them: those of the
    ticks, the x axis's label, so many `legend_rows` above, and `right` letters of a second scale's ticks. To measure
    every text, as Matplotlib's layouts do, is a third of a drawing's time, and the reader's font is another one."""
    letter, row = 0.62 * FONT, 1.25 * FONT
    x, y = (a.get_major_formatter().format_ticks(a.get_majorticklocs()) for a in (axes.xaxis, axes.yaxis))
    width, height = 72 * axes.figure.get_size_inches()
    low, high = axes.get_xlim()
    over = letter * len(x[-1]) / 2 - (high - axes.get_xticks()[-1]) / (high - low) * width  # half of the last tick
    over *= axes.get_xscale() == "linear"
    left = (EDGE + TICK_PAD + letter * max(map(len, y), default=0)) / width
    bottom = (EDGE + TICK_PAD + 2 * row + LABEL_PAD) / height
    behind = max(0.0, over, (TICK_PAD + letter * right) if right else 0.0)
    above = row / 2 + 1.35 * row * legend_rows
    axes.set_position((left, bottom, 1 - left - (behind + EDGE) / width, 1 - bottom - (above + EDGE) / height))


def svg(figure: Any, name: str) -> str:
    """The drawing as an <svg> element, its ids beginning with `name`."""
    out = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.canvas.print_svg(out, metadata=metadata)  # savefig would draw everything once before
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub("<[^>]*>", lambda match: _inline(match.group(), name), text)  # not between tags: names stand there


def _inline(tag: str, name: str) -> str:
    """A tag of matplotlib's as it stands in a page."""
    tag = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", tag)  # an inline drawing needs none
    tag = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", tag).replace("xlink:href", "href")
    placeholders = {INK: "ink", MUTED: "muted", LINE: "line"} | {series_colour(i): f"c{i}" for i in range(COLOURS)}
    for placeholder, variable in placeholders.items():
        tag = tag.replace(placeholder, f"var(--{variable})")
    return tag
