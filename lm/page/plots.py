"""Charts as SVG text for a web page: they take their colours from the page's style sheet, so that one chart is right
on a light screen, on a dark one and on paper.

Matplotlib draws with placeholder colours, which become CSS variables: --ink, --muted, --line, and --c0 to --c5 for
series. The same numbers give the same bytes. Matplotlib is imported when the first chart is drawn: it takes half a
second."""

import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = 6
INK, MUTED, LINE = "#010101", "#020202", "#030303"  # placeholders; see _themed
FAR = 6  # times as far from zero as the middle interval: too far to be drawn beside it
WIDE, HALF = (10.0, 3.1), (4.9, 2.35)  # inches: 72 units of the drawing each, 96 pixels on the page


@dataclass(frozen=True)
class Line:
    """One line of a chart, in the `colour` of a series, or -1 for grey. `faint` draws it thin behind the others,
    `dots` marks its points; `low` and `high`, as long as `y`, bound a band around it."""

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    colour: int = 0
    faint: bool = False
    dots: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Interval:
    """One row of a chart of intervals: the `middle` of `low` to `high`, nan where there is none; thin behind it `wide`,
    another interval; and the `dots` that it was made of. `colour` as that of a line."""

    label: str
    middle: float
    low: float
    high: float
    wide: tuple[float, float] = (math.nan, math.nan)
    dots: Sequence[float] = ()
    colour: int = 0


def chart(
    name: str,
    lines: Sequence[Line],
    levels: Mapping[str, float] | None = None,
    size: tuple[float, float] = HALF,
    percent: bool = False,
    from_zero: bool = False,
    top: float | None = None,
    right: float | None = None,
    across: str = "step",
) -> str:
    """Lines over training steps, or what `across` names. `name` (letters) keeps the drawing's ids apart from those of
    other charts on the page; `levels` are horizontal lines with a label each; `percent` reads the y axis as shares;
    `top` cuts it; `right` adds a second scale at the right, of shares: y times `right`."""
    figure, axes = _axes(name, size)
    axes.set_xlabel(across)
    for line in lines:
        colour = _series(line.colour)
        if len(line.low):
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
        width, alpha = (0.8, 0.35) if line.faint else (1.7, 1.0)
        marker = dict(marker="o", markersize=3.5) if line.dots else {}
        axes.plot(line.x, line.y, color=colour, linewidth=width, alpha=alpha, label=line.label or "_", **marker)
    _draw_levels(axes, levels or {})
    if from_zero:
        axes.set_ylim(bottom=0)
    if top is not None:
        axes.set_ylim(top=top)
    _number_axes(axes, percent)
    if right is not None:
        _second_scale(axes, right)
    _legend(axes, sum(bool(line.label) for line in lines))
    return _svg(figure, name)


def intervals(name: str, rows: Sequence[Interval], across: str, width: float = WIDE[0]) -> str:
    """Intervals, one below the other, against zero; `across` says what the numbers are. One that lies far beyond the
    others is an arrow at the edge, with its number: it would leave no room for them."""
    figure, axes = _axes(name, (width, 0.75 + 0.3 * len(rows)))
    most = FAR * statistics.median_low([max(map(abs, _reach(row)), default=0.0) for row in rows])
    inside = [x for row in rows if abs(row.middle) <= most for x in (0.0, *_reach(row))]
    low, high = min(inside), max(inside)
    edges = low - 0.04 * (high - low), high + 0.04 * (high - low)
    axes.set_xlabel(across)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    axes.axvline(0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    for y, row in enumerate(rows):
        colour = _series(row.colour)
        if abs(row.middle) > most:
            right = row.middle > 0
            axes.plot([edges[right]], [y], ">" if right else "<", color=colour, markersize=6, clip_on=False)
            where = {"xytext": (-8 if right else 8, 0), "textcoords": "offset points", "va": "center"}
            text = f"{row.middle:+.3g}".replace("-", "−")
            axes.annotate(text, (edges[right], y), ha="right" if right else "left", color=colour, **where)
            continue
        axes.plot(row.wide, (y, y), color=colour, linewidth=1.0, alpha=0.5)
        axes.plot((row.low, row.high), (y, y), color=colour, linewidth=3.2, solid_capstyle="butt")
        axes.plot(row.dots, [y + 0.27] * len(row.dots), "o", color=colour, markersize=2.6, alpha=0.6)
        axes.plot([row.middle], [y], "o", color=colour, markersize=5.5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if low < high:
        axes.set_xlim(*edges)
    return _svg(figure, name)


def _reach(row: Interval) -> list[float]:
    """The numbers that an interval's drawing goes through."""
    return [x for x in (row.middle, row.low, row.high, *row.wide, *row.dots) if math.isfinite(x)]


def shares(
    name: str, steps: Sequence[float], by_source: Mapping[str, Sequence[float]], size: tuple[float, float] = HALF
) -> str:
    """Shares of a whole over training steps, as stacked areas; between the steps they change linearly."""
    figure, axes = _axes(name, size)
    colours = [_series(i) for i in range(len(by_source))]
    axes.stackplot(steps, *by_source.values(), labels=list(by_source), colors=colours, alpha=0.75, linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_xlim(min(steps), max(steps))
    _number_axes(axes, percent=True)
    _legend(axes, len(by_source), at_least=1)
    return _svg(figure, name)


def smoothed(values: Sequence[float], window: float) -> list[float]:
    """An exponential moving average over about `window` values, and over fewer at the start, where a loss falls
    fast."""
    total, weight, out = 0.0, 0.0, list[float]()
    for i, value in enumerate(values):
        keep = 1 - 1 / max(min(window, i / 4), 1.0)
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


def _series(index: int) -> str:
    return f"#0a0a{index % COLOURS:02x}" if index >= 0 else MUTED


def _axes(name: str, size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 8.5,
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
    matplotlib.rcParams.update(matplotlib.rcParamsDefault)
    matplotlib.rcParams.update({"backend": "svg", **style})
    figure = Figure(figsize=size, layout="constrained")  # not pyplot: it would keep every figure, and look for a screen
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("step")
    return figure, axes


def _draw_levels(axes: Any, levels: Mapping[str, float]) -> None:
    """Labelled horizontal lines; neighbours put their labels on opposite sides, so that they do not cover each
    other."""
    top = max(levels.values(), default=0.0)
    for label, y in levels.items():
        axes.axhline(y, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        above = y == top
        axes.annotate(
            f"{label}  {y:.2f}",
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2.5 if above else -2.5),
            textcoords="offset points",
            ha="right",
            va="bottom" if above else "top",
            color=MUTED,
            fontsize=8,
        )
    if levels:
        axes.margins(y=0.14)


def _number_axes(axes: Any, percent: bool) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}") if axes.get_xlim()[1] < 1e5 else EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    least, most = axes.get_ylim()
    high = max(abs(least), abs(most))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None if most - least < 0.1 else 0))
    elif high >= 1000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    elif high < 0.01:
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.2g}".replace("e-0", "e−") if y else "0")


def _second_scale(axes: Any, factor: float) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    scale = axes.secondary_yaxis("right", functions=(lambda y: y * factor, lambda share: share / factor))
    scale.yaxis.set_major_locator(MaxNLocator(5))
    scale.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    scale.tick_params(length=0)
    scale.spines["right"].set_visible(False)


def _legend(axes: Any, labelled: int, at_least: int = 2) -> None:
    if labelled >= at_least:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=min(labelled, 6),
            frameon=False,
            fontsize=8.5,
            handlelength=1.4,
            borderaxespad=0.1,
            columnspacing=1.4,
        )


def _svg(figure: Any, name: str) -> str:
    out = io.StringIO()
    figure.savefig(
        out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)  # an inline drawing needs none
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    return _themed(text)


def _themed(svg: str) -> str:
    for placeholder, variable in (
        (INK, "ink"),
        (MUTED, "muted"),
        (LINE, "line"),
        *((_series(i), f"c{i}") for i in range(COLOURS)),
    ):
        svg = svg.replace(placeholder, f"var(--{variable})")
    return svg
