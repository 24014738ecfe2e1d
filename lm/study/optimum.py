"""Where the best learning rate of each width is, how sure that is, and whether it transfers from width to width.

A seed's best rate is the vertex of the parabola through the lowest point of its curve and its two neighbours, in the
logarithm of the rate. How it goes with the width is an exponent a seed, by least squares; the interval is over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np

from lm.page import plots
from lm.page.markup import Markup, charts, figure, section
from lm.page.plots import Dots, Line
from lm.page.tables import Table
from lm.page.words import LEVEL, Estimate, join_and, signed
from lm.study.report import Findings
from lm.study.statistics import Measured, student
from lm.study.verdicts import UNKNOWN, direction, title

TRANSFERS, MOVES = "transfers", "moves"
STEEP = 3.0  # how far above the best losses a chart goes, in distances between the best of the widths
write = partial(signed, spec=".2f")  # an exponent


@dataclass(frozen=True)
class LrCurve:
    """The curve of one width over the learning rate: the `measured` arms by rate, the `best` rates by seed; `ended`
    where one of them is the first or the last that was tried."""

    width: int
    measured: Mapping[float, Measured]
    best: Mapping[int, float]
    ended: bool

    @property
    def rates(self) -> list[float]:
        """Those at which a seed has finished, rising."""
        return sorted(rate for rate, one in self.measured.items() if one.values)

    @property
    def means(self) -> list[float]:
        """Of the measure over the seeds, by `rates`."""
        return [self.measured[rate].mean for rate in self.rates]

    @property
    def rate(self) -> Estimate:
        """The geometric mean of the best rates of the seeds, with Student's interval in the logarithm."""
        return Estimate(*map(math.exp, astuple(student([math.log(rate) for rate in self.best.values()]))))

    def at(self, rate: float) -> float:
        """The measure at a rate between those tried, on lines between the means."""
        return float(np.interp(math.log(rate), np.log(self.rates), self.means))


@dataclass(frozen=True)
class LrTransfer:
    """Of one parametrisation, the `curves` by width, and the `exponent` of the width in the best rate with its 95%
    interval over the `seeds` that have all widths. The `verdict`: TRANSFERS, where the interval lies within `tolerance`
    of 0 and no best rate is at an end of those tried; MOVES, where it leaves out 0 and the exponent is beyond it."""

    rule: str
    curves: tuple[LrCurve, ...]
    exponent: Estimate
    seeds: int
    tolerance: float

    @property
    def ended(self) -> list[int]:
        """The widths whose best rate may lie beyond those tried."""
        return [curve.width for curve in self.curves if curve.ended]

    @property
    def verdict(self) -> str:
        if self.exponent.low * self.exponent.high > 0 and abs(self.exponent.value) > self.tolerance:
            return MOVES
        within = -self.tolerance <= self.exponent.low and self.exponent.high <= self.tolerance
        return TRANSFERS if within and not self.ended else UNKNOWN

    @property
    def where(self) -> str:
        """The parametrisation, as a sentence names it."""
        return "the standard parametrisation" if self.rule == "standard" else self.rule

    @property
    def headline(self) -> str:
        """The outcome, in a sentence or two."""
        if math.isnan(self.exponent.value):
            return f"In {self.where}, no conclusion yet: one seed must have finished at two widths."
        text = f"the best learning rate {self.verdict}"
        if self.verdict == UNKNOWN:
            text = f"whether the best learning rate {TRANSFERS}, the data cannot tell,"
        text += f" from width {self.curves[0].width} to {self.curves[-1].width}"
        sure = f"as width^{write(self.exponent.value)} {self.exponent.over_seeds(self.seeds, write)}"
        ended = f" At width {join_and(self.ended)} it is at an end of the rates tried: it may lie beyond."
        return f"In {self.where}, {text}: {sure}.{ended if self.ended else ''}"


def lr_transfer(
    rule: str, losses: Mapping[tuple[int, float], Measured], tolerance: float, measure: str = "loss"
) -> LrTransfer:
    """What the arms of one parametrisation, by width and rate, tell of its best rates."""
    widths = sorted({width for width, _ in losses})
    curves = [_curve(w, {rate: one for (width, rate), one in losses.items() if width == w}, measure) for w in widths]
    shared = sorted(set.intersection(*(set(curve.best) for curve in curves)))
    slopes = [
        float(np.polyfit(np.log(widths), [math.log(curve.best[seed]) for curve in curves], 1)[0])
        for seed in (shared if len(widths) > 1 else [])
    ]
    return LrTransfer(rule, tuple(curves), student(slopes), len(slopes), tolerance)


def _curve(width: int, by_rate: Mapping[float, Measured], measure: str) -> LrCurve:
    rates, sign = sorted(by_rate), 1 if direction(measure) > 0 else -1
    seeds = sorted({seed for one in by_rate.values() for seed in one.values})
    lows = {seed: lowest(rates, [-sign * by_rate[rate].values.get(seed, math.nan) for rate in rates]) for seed in seeds}
    best = {seed: rate for seed, (rate, _) in lows.items()}
    return LrCurve(width, by_rate, best, any(end for _, end in lows.values()))


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


# ---------------------------------------------------------------- for the report


def findings(transfers: Sequence[LrTransfer], measure: str) -> Findings:
    """The charts and tables of a sweep of rates over widths, and a sentence a parametrisation."""
    if not transfers:
        return Findings("No run has finished yet.")
    best = [curve.at(curve.rate.value) for one in transfers for curve in one.curves]
    # rates that are far too large would flatten all else
    top = max(best) + max(STEEP * (max(best) - min(best)), 0.05 * abs(max(best)))
    drawn = [_chart(i, one, top) for i, one in enumerate(transfers)]
    note = f"Held-out {title(measure)} against the peak learning rate; the large dots are the best rates."
    shown = section("Learning rates", charts(drawn), note=note)
    return Findings(
        " ".join(one.headline for one in transfers), [shown, _verdicts(transfers), _rates(transfers, measure)]
    )


def _verdicts(transfers: Sequence[LrTransfer]) -> Table:
    rows = tuple(
        (one.rule, one.verdict, write(one.exponent.value), one.exponent.span(write), str(one.seeds))
        for one in transfers
        if not math.isnan(one.exponent.value)
    )
    note = (
        "The exponent a of width^a in the best rate. It transfers where the interval lies within "
        f"{transfers[0].tolerance:g} of 0, and moves where the interval leaves out 0 and the exponent is beyond that."
    )
    head = ("parametrisation", "best rate", "exponent", f"{LEVEL:.0%} interval", "seeds")
    return Table("Does the best learning rate transfer?", head, rows, note, text_columns=2)


def _rates(transfers: Sequence[LrTransfer], measure: str) -> Table:
    rows = tuple(
        (
            *(one.rule, str(curve.width), f"{curve.rate.value:.3g}{' (at an end)' if curve.ended else ''}"),
            curve.rate.span("{:.2g}".format),
            f"{curve.at(curve.rate.value):.4g}",
            f"{curve.at(one.curves[0].rate.value):.4g}",
        )
        for one in transfers
        for curve in one.curves
    )
    smallest, name = min(curve.width for one in transfers for curve in one.curves), title(measure)
    head = ("parametrisation", "width", "best rate", f"{LEVEL:.0%} interval", f"{name} there", f"at that of {smallest}")
    note = f"The last column is the {name} at the best rate of width {smallest}: what taking it over costs."
    return Table("Best rates", head, rows, note)


def _chart(i: int, one: LrTransfer, top: float) -> Markup:
    series: list[Line | Dots] = []
    for n, curve in enumerate(one.curves):
        values = [list(curve.measured[rate].values.values()) for rate in curve.rates]
        low, high = ([of(seeds) for seeds in values] for of in (min, max))
        series.append(Line(curve.rates, curve.means, str(curve.width), n, dots=True, low=low, high=high))
        series.append(Dots([curve.rate.value], [curve.at(curve.rate.value)], colour=n, size=6.5))
    drawn = plots.chart(f"rates{i}", series, across="learning rate", log=True, top=top)
    return figure(one.where[0].upper() + one.where[1:], drawn, "a line a width; its band is the range over seeds")
