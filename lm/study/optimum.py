"""Where the best learning rate of each width is, how sure that is, and whether it stands still.

A seed's best rate is the vertex of the parabola through the lowest point of its curve and its two neighbours, in the
logarithm of the rate. How it goes with the width is an exponent a seed, by least squares; the interval is over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lm.page.markup import Markup, figure, section, tag
from lm.page.plots import HALF, _axes, _legend, _series, _svg
from lm.study.statistics import ALPHA, LEVEL, Measured, direction
from lm.study.tables import NONE, Table, named

STANDS, MOVES, UNKNOWN = "stands still", "moves", "cannot tell"
STEEP = 3.0  # how far above the best losses a chart goes, in distances between the best of the widths
Curve = Mapping[float, float]


@dataclass(frozen=True)
class Valley:
    """The curve of one width: the `means` over seeds of the measure by rate, `low` and `high` their range, the `best`
    rates by seed; `ended` where one of them is the first or the last that was tried."""

    width: int
    means: Curve
    low: Curve
    high: Curve
    best: Mapping[int, float]
    ended: bool

    @property
    def rate(self) -> float:
        """The geometric mean of the best rates of the seeds."""
        return math.exp(float(np.mean([math.log(rate) for rate in self.best.values()])))

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95% interval of it, in the logarithm; nan below two seeds."""
        middle, half = _student([math.log(rate) for rate in self.best.values()])
        return math.exp(middle - half), math.exp(middle + half)

    def at(self, rate: float) -> float:
        """The measure at a rate between those tried, on lines between the means."""
        rates = sorted(self.means)
        return float(np.interp(math.log(rate), np.log(rates), [self.means[r] for r in rates]))


@dataclass(frozen=True)
class Standing:
    """Of one parametrisation, the `valleys` by width, and the `exponent` of the width in the best rate with its 95%
    interval over the `seeds` that have all widths. The `verdict`: STANDS, where the interval lies within `tolerance`
    of 0 and no best rate is at an end of those tried; MOVES, where it leaves out 0 and the exponent is beyond it."""

    rule: str
    valleys: tuple[Valley, ...]
    exponent: float
    low: float
    high: float
    seeds: int
    tolerance: float

    @property
    def ended(self) -> list[int]:
        """The widths whose best rate may lie beyond those tried."""
        return [v.width for v in self.valleys if v.ended]

    @property
    def verdict(self) -> str:
        if self.low * self.high > 0 and abs(self.exponent) > self.tolerance:
            return MOVES
        within = -self.tolerance <= self.low and self.high <= self.tolerance
        return STANDS if within and not self.ended else UNKNOWN

    @property
    def where(self) -> str:
        """The parametrisation, as a sentence names it."""
        return "the standard parametrisation" if self.rule == "standard" else self.rule

    @property
    def headline(self) -> str:
        """What was found, in a sentence or two."""
        widths = [v.width for v in self.valleys]
        if math.isnan(self.exponent):
            return f"In {self.where}, nothing can be told yet: two widths are needed that a seed has finished."
        span = f"from width {widths[0]} to {widths[-1]}"
        said = f"as width^{_signed(self.exponent)} ({self.sure})"
        beyond = f" At width {_and(self.ended)} it is at an end of the rates tried: it may lie beyond." * bool(
            self.ended
        )
        unknown = "stands still, the data cannot tell," if self.verdict == UNKNOWN else self.verdict
        whether = "whether " * (self.verdict == UNKNOWN)
        return f"In {self.where}, {whether}the best learning rate {unknown} {span}: {said}.{beyond}"

    @property
    def sure(self) -> str:
        """The interval of the exponent, in words."""
        if math.isnan(self.low):
            return "one seed: no interval"
        return f"95% interval {_signed(self.low)} to {_signed(self.high)}, {self.seeds} seeds"


def standing(
    rule: str, losses: Mapping[tuple[int, float], Measured], tolerance: float, measure: str = "loss"
) -> Standing:
    """What the arms of one parametrisation, by width and rate, tell of its best rates."""
    widths = sorted({width for width, _ in losses})
    valleys = [_valley(w, {rate: m for (width, rate), m in losses.items() if width == w}, measure) for w in widths]
    shared = sorted(set.intersection(*(set(v.best) for v in valleys)))
    slopes = [
        float(np.polyfit(np.log(widths), [math.log(v.best[seed]) for v in valleys], 1)[0])
        for seed in (shared if len(widths) > 1 else [])
    ]
    middle, half = _student(slopes)
    return Standing(rule, tuple(valleys), middle, middle - half, middle + half, len(slopes), tolerance)


def _valley(width: int, found: Mapping[float, Measured], measure: str) -> Valley:
    rates, seeds = sorted(found), sorted({seed for one in found.values() for seed in one.values})
    sign = 1 if direction(measure) > 0 else -1
    best, ended = dict[int, float](), False
    for seed in seeds:
        best[seed], end = lowest(rates, [-sign * found[rate].values.get(seed, math.nan) for rate in rates])
        ended |= end
    values = {rate: list(found[rate].values.values()) for rate in rates if found[rate].values}
    means = {rate: found[rate].mean for rate in values}
    low, high = ({rate: of(values[rate]) for rate in values} for of in (min, max))
    return Valley(width, means, low, high, best, ended)


def lowest(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, bool]:
    """The rate with the least loss, between those tried; and whether it is the first or the last of them. A loss that
    is nan (a run that diverged) is above all others, and no curve goes through it."""
    i = int(np.nanargmin(losses))
    if i in (0, len(rates) - 1):
        return rates[i], True
    near = slice(i - 1, i + 2)
    if not np.isfinite(losses[near]).all():
        return rates[i], False
    a, b, _ = np.polyfit(np.log(rates[near]), losses[near], 2)
    return (math.exp(-b / (2 * a)) if a > 0 else rates[i]), False


def _student(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half of its 95% interval; nan where there are too few."""
    n = len(values)
    half = stats.t.ppf(1 - ALPHA / 2, n - 1) * np.std(values, ddof=1) / n**0.5 if n > 1 else math.nan
    return float(np.mean(values)) if n else math.nan, float(half)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _and(words: Sequence[object]) -> str:
    return " and ".join([", ".join(map(str, words[:-1])), str(words[-1])] if len(words) > 1 else map(str, words))


# ---------------------------------------------------------------- for a report


def sections(found: Sequence[Standing], measure: str) -> list[Markup | Table]:
    """The charts and tables of a sweep of rates over widths."""
    top = _top(found)
    charts = [_chart(i, one, measure, top) for i, one in enumerate(found)]
    note = f"Held-out {named(measure)} against the peak learning rate; the large dots are the best rates."
    return [
        section("Learning rates", tag("div", *charts, class_="charts"), note=note),
        _verdicts(found),
        _rates(found, measure),
    ]


def _verdicts(found: Sequence[Standing]) -> Table:
    rows = tuple(
        (
            one.rule,
            one.verdict,
            _signed(one.exponent),
            f"{_signed(one.low)} to {_signed(one.high)}" if one.seeds > 1 else NONE,
            str(one.seeds),
        )
        for one in found
        if not math.isnan(one.exponent)
    )
    note = (
        "The exponent a of width^a in the best rate. It stands still where the interval lies within "
        f"{found[0].tolerance:g} of 0, and moves where the interval leaves out 0 and the exponent is beyond that."
    )
    head = ("parametrisation", "best rate", "exponent", f"{LEVEL:.0%} interval", "seeds")
    return Table("Does the best rate stand still?", head, rows, note, text_columns=2)


def _rates(found: Sequence[Standing], measure: str) -> Table:
    rows = []
    for one in found:
        small = one.valleys[0]
        for v in one.valleys:
            low, high = v.interval
            sure = f"{low:.2g} to {high:.2g}" if len(v.best) > 1 else NONE
            remark = " (at an end)" if v.ended else ""
            cells = (f"{v.rate:.3g}{remark}", sure, f"{v.at(v.rate):.4g}", f"{v.at(small.rate):.4g}")
            rows.append((one.rule, str(v.width), *cells))
    smallest = min(v.width for one in found for v in one.valleys)
    head = (*("parametrisation", "width", "best rate", f"{LEVEL:.0%} interval"), f"{named(measure)} there")
    note = f"The last column is the {named(measure)} at the best rate of width {smallest}: what taking it over costs."
    return Table("Best rates", (*head, f"at that of {smallest}"), tuple(rows), note, text_columns=1)


def _top(found: Sequence[Standing]) -> float:
    """Where the charts are cut: rates that are far too large would flatten all else."""
    best = [v.at(v.rate) for one in found for v in one.valleys]
    return max(best) + max(STEEP * (max(best) - min(best)), 0.05 * abs(max(best)))


def _chart(i: int, one: Standing, measure: str, top: float) -> Markup:
    drawing, axes = _axes(f"rates{i}", HALF)
    for n, v in enumerate(one.valleys):
        rates = sorted(v.means)
        colour = _series(n)
        axes.fill_between(
            rates, [v.low[r] for r in rates], [v.high[r] for r in rates], color=colour, alpha=0.16, linewidth=0
        )
        axes.plot(
            rates, [v.means[r] for r in rates], "-o", color=colour, linewidth=1.7, markersize=2.5, label=str(v.width)
        )
        axes.plot([v.rate], [v.at(v.rate)], "o", color=colour, markersize=6.5)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    bottom = axes.get_ylim()[0]
    axes.set_ylim(bottom, max(top, bottom))
    _legend(axes, len(one.valleys))
    return figure(
        one.where[0].upper() + one.where[1:],
        _svg(drawing, f"rates{i}"),
        "a line a width; its band is the range over seeds",
    )
