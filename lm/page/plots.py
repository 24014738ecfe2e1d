"""The charts of a page: lines with bands, dots with bars, intervals against zero, shares, and parallel coordinates."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm.machine.monitor import human
from lm.page.svg import DASHED, INK, MUTED, drawing, literal, make_room, new_axes, series_colour, svg

FAR = 6  # times as far from zero as the middle interval: too far to be drawn with it
WIDE, HALF = (10.0, 3.1), (4.9, 2.35)  # inches: 72 units of the drawing each, 96 pixels on the page
TICK_TEXT = 7.5  # points


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

    def draw(self, axes: Any) -> Any:
        """Draw it on matplotlib's axes; what a legend shows of it."""
        colour = series_colour(self.colour)
        if len(self.low):
            axes.fill_between(self.x, self.low, self.high, color=colour, alpha=0.16, linewidth=0)
        width, alpha = (0.8, 0.35) if self.faint else (1.7, 1.0)
        marker = dict(marker="o", markersize=3.5) if self.dots else {}
        (line,) = axes.plot(self.x, self.y, color=colour, linewidth=width, alpha=alpha, **marker)
        return line


@dataclass(frozen=True)
class Dots:
    """Points of a chart, each with a bar from `low` to `high` where they are given and not nan. `marker` as
    matplotlib's, `size` in points; `faint` ones are half transparent."""

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    colour: int = 0
    faint: bool = False
    marker: str = "o"
    size: float = 4.0
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    def draw(self, axes: Any) -> Any:
        """Draw them on matplotlib's axes; what a legend shows of them."""
        colour, edge = series_colour(self.colour), 1.6 if self.marker == "x" else 1.0
        look = dict(color=colour, markersize=self.size, markeredgewidth=edge, alpha=0.6 if self.faint else 0.9)
        (dots,) = axes.plot(self.x, self.y, self.marker, **look)
        for x, low, high in zip(self.x, self.low, self.high, strict=False):
            if math.isfinite(low + high):
                axes.plot([x, x], [low, high], color=colour, linewidth=1.2, alpha=0.7)
        return dots


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

    @property
    def extent(self) -> list[float]:
        """The finite numbers that its drawing goes through."""
        return [x for x in (self.middle, self.low, self.high, *self.wide, *self.dots) if math.isfinite(x)]


@drawing
def chart(
    name: str,
    series: Sequence[Line | Dots],
    *,
    size: tuple[float, float] = HALF,
    across: str = "step",
    log: bool = False,
    ticks: Sequence[str] = (),
    levels: Mapping[str, float] | None = None,
    percent: bool = False,
    from_zero: bool = False,
    top: float | None = None,
    right: float | None = None,
    diagonal: bool = False,
) -> str:
    """Lines and dots over training steps, or over what `across` names, as SVG.

    Args:
      name: letters, which no other chart of the page has.
      series: what is drawn, the first behind the others.
      size: (width, height) in inches.
      across: the label of the x axis.
      log: whether the x axis is logarithmic.
      ticks: names of x = 0, 1, 2 ... instead of numbers.
      levels: horizontal lines, by their labels.
      percent: whether y is a share, written as per cent.
      from_zero: whether the y axis begins at 0.
      top: where the y axis is cut.
      right: a second scale at the right, of shares: y times `right`.
      diagonal: whether y = x is drawn, between the least and the largest x.
    """
    figure, axes = new_axes(name, size, placed=False)
    axes.set_xlabel(literal(across))
    if diagonal:
        ends = [end(x for one in series for x in one.x) for end in (min, max)]
        axes.plot(ends, ends, **DASHED)
    drawn = [(one.draw(axes), one.label) for one in series]
    _draw_levels(axes, levels or {})
    bottom = 0.0 if from_zero else axes.get_ylim()[0]
    if from_zero or top is not None:
        axes.set_ylim(bottom, None if top is None else max(top, bottom))
    _scale_x(axes, log, ticks, whole=all(float(x).is_integer() for one in series for x in one.x))
    _scale_y(axes, percent)
    if right is not None:
        _second_scale(axes, right)
    rows = _legend(axes, [(line, label) for line, label in drawn if label])
    make_room(axes, rows, right=0 if right is None else len("100%"))
    return svg(figure, name)


@drawing
def intervals(name: str, rows: Sequence[Interval], across: str, width: float = WIDE[0]) -> str:
    """Intervals, one below the other, against zero; `across` says what the numbers are. One that lies far beyond the
    others is an arrow at the edge, with its number: it would leave no room for them."""
    figure, axes = new_axes(name, (width, 0.75 + 0.3 * len(rows)))
    most = FAR * statistics.median_low([max(map(abs, row.extent), default=0.0) for row in rows])
    inside = [x for row in rows if abs(row.middle) <= most for x in (0.0, *row.extent)]
    low, high = min(inside), max(inside)
    edges = low - 0.04 * (high - low), high + 0.04 * (high - low)
    axes.set_xlabel(literal(across))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    axes.axvline(0, **DASHED)
    for y, row in enumerate(rows):
        if abs(row.middle) > most:
            _draw_arrow(axes, y, row, edges)
        else:
            _draw_interval(axes, y, row)
    axes.set_yticks(range(len(rows)), [literal(row.label) for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if low < high:
        axes.set_xlim(*edges)
    return svg(figure, name)


def _draw_interval(axes: Any, y: int, row: Interval) -> None:
    colour = series_colour(row.colour)
    axes.plot(row.wide, (y, y), color=colour, linewidth=1.0, alpha=0.5)
    axes.plot((row.low, row.high), (y, y), color=colour, linewidth=3.2, solid_capstyle="butt")
    axes.plot(row.dots, [y + 0.27] * len(row.dots), "o", color=colour, markersize=2.6, alpha=0.6)
    axes.plot([row.middle], [y], "o", color=colour, markersize=5.5)


def _draw_arrow(axes: Any, y: int, row: Interval, edges: tuple[float, float]) -> None:
    right, colour = row.middle > 0, series_colour(row.colour)
    axes.plot([edges[right]], [y], ">" if right else "<", color=colour, markersize=6, clip_on=False)
    text = f"{row.middle:+.3g}".replace("-", "−")
    where = {"xytext": (-8 if right else 8, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (edges[right], y), ha="right" if right else "left", color=colour, **where)


@drawing
def shares(
    name: str, steps: Sequence[float], by_source: Mapping[str, Sequence[float]], size: tuple[float, float] = HALF
) -> str:
    """Shares of a whole over training steps, as stacked areas; between the steps they change linearly."""
    figure, axes = new_axes(name, size, placed=False)
    axes.set_xlabel("step")
    colours = [series_colour(i) for i in range(len(by_source))]
    areas = axes.stackplot(steps, *by_source.values(), colors=colours, alpha=0.75, linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_xlim(min(steps), max(steps))
    _scale_x(axes)
    _scale_y(axes, percent=True)
    make_room(axes, _legend(axes, list(zip(areas, by_source, strict=True)), at_least=1))
    return svg(figure, name)


@drawing
def heat(
    name: str, steps: Sequence[float], rows: Sequence[Sequence[float]], groups: int, size: tuple[float, float] = HALF
) -> str:
    """A value of each of `rows` over training steps, as colours from the least to the largest; the rows are in `groups`
    of as many, layers, that are numbered from below."""
    figure, axes = new_axes(name, size)
    axes.grid(visible=False)
    half = (steps[-1] - steps[0]) / max(2 * (len(steps) - 1), 1) or 0.5
    across = (steps[0] - half, steps[-1] + half, -0.5, groups - 0.5)
    image = axes.imshow(rows, aspect="auto", origin="lower", interpolation="nearest", extent=across, cmap="magma")
    axes.set_xlabel("step")
    axes.set_ylabel("layer")
    axes.set_yticks([layer for layer in range(groups) if groups <= 8 or layer % -(-groups // 8) == 0])
    figure.colorbar(image, ax=axes, pad=0.02).outline.set_visible(False)
    return svg(figure, name)


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates: its `label`, and (place from 0 to 1, text) for each of its `ticks`."""

    label: str
    ticks: Sequence[tuple[float, str]]


@drawing
def parallel(name: str, along: Sequence[Axis], lines: Sequence[Sequence[float]], best: int) -> str:
    """Parallel coordinates: a line across all axes for each of `lines`, which has a place from 0 to 1 on each. The last
    `best` lines are drawn in colour, the others grey."""
    figure, axes = new_axes(name, WIDE)
    axes.grid(axis="y", visible=False)
    for i, y in enumerate(lines):
        if i < len(lines) - best:
            axes.plot(range(len(y)), y, color=MUTED, linewidth=0.8, alpha=0.4)
        else:
            axes.plot(range(len(y)), y, color=series_colour(0), linewidth=1.6)
    for x, one in enumerate(along):
        axes.axvline(x, color=MUTED, linewidth=0.6)
        beside = dict(xytext=(4, 0), textcoords="offset points", va="center")
        for place, text in one.ticks:
            axes.annotate(literal(text), (x, place), color=MUTED, fontsize=TICK_TEXT, **beside)
    axes.set_xticks(range(len(along)), [literal(one.label) for one in along], color=INK)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.margins(x=0.09)
    return svg(figure, name)


def smoothed(values: Sequence[float], window: float) -> list[float]:
    """An exponential moving average over about `window` values, and over fewer at the start, where a loss falls
    fast."""
    total, weight, out = 0.0, 0.0, list[float]()
    for i, value in enumerate(values):
        keep = 1 - 1 / max(min(window, i / 4), 1.0)
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


# ---------------------------------------------------------------- axes


def _draw_levels(axes: Any, levels: Mapping[str, float]) -> None:
    """Labelled horizontal lines; neighbours put their labels on opposite sides, so that they do not cover each
    other."""
    top = max(levels.values(), default=0.0)
    for label, y in levels.items():
        axes.axhline(y, **DASHED)
        above = y == top
        axes.annotate(
            f"{literal(label)}  {y:.2f}",
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


def _scale_x(axes: Any, log: bool = False, ticks: Sequence[str] = (), whole: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    if log:
        axes.set_xscale("log")
    elif ticks:
        axes.set_xticks(range(len(ticks)), [literal(tick) for tick in ticks])
        axes.margins(x=0.15)
    elif whole:
        low, high = axes.dataLim.intervalx
        inner = MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]).tick_values(low, high)
        axes.set_xticks(with_ends(inner, low, high))
        large = high >= 1e5
        axes.xaxis.set_major_formatter((lambda x, _: human(x)) if large else StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.get_ticklabels()[0].set_horizontalalignment("left")  # or a long one runs into the y axis's


def with_ends(ticks: Sequence[float], low: float, high: float) -> list[float]:
    """The ticks between the ends of the data, and these, for which nearby ones make room."""
    if not high > low:
        return [low]
    room = 0.09 * (high - low)
    return [low, *(x for x in ticks if low + room < x < high - room), high]


def _scale_y(axes: Any, percent: bool) -> None:
    """Ticks of the y axis, of which the outer ones enclose the data, or where it is cut, what is left of them."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    locator = MaxNLocator(5)
    axes.yaxis.set_major_locator(locator)
    least, most = axes.get_ylim()
    low, high = axes.dataLim.intervaly
    if high > low:
        ticks = locator.tick_values(least, most)
        below, above = [y for y in ticks if y <= low], [y for y in ticks if y >= high]
        least, most = min([least, *below[-1:]]), max([most, *above[:1]])
        axes.set_ylim(least, most)
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
    scale.patch.set_facecolor("none")


def _legend(axes: Any, named: Sequence[tuple[Any, str]], at_least: int = 2) -> int:
    """A legend of (what is drawn, its name), where there are `at_least` so many; its rows."""
    if len(named) < at_least:
        return 0
    columns = min(len(named), 6 if axes.figure.get_figwidth() > HALF[0] else 3)
    legend = axes.legend(
        [drawn for drawn, _ in named],
        [str(i) for i in range(len(named))],  # matplotlib would leave out a name that begins with _
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=1.4,
        borderaxespad=0.1,
        columnspacing=1.4,
    )
    for text, (_, name) in zip(legend.get_texts(), named, strict=True):
        text.set_text(literal(name))
    return -(-len(named) // columns)
