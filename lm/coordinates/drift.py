"""How what is measured at several widths depends on the width: exponents, place by place, and verdicts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """At one `place` after `step` steps: the mean absolute value of a coordinate, and of its change since step 0."""

    parametrisation: str
    width: int
    seed: int
    step: int
    place: str
    size: float
    change: float


class Slope(NamedTuple):
    """The exponents of the width with which a `place` grows: its size `at_first`, and its `change` after the last step
    with half of a 95% interval; and the `verdict`: flat, grows, shrinks, still (it does not move), not finite."""

    parametrisation: str
    place: str
    at_first: float
    change: float
    half_width: float
    verdict: str


@dataclass(frozen=True)
class Analysis:
    """The outcome of a coordinate check: all its rows and slopes; those that `drift` are the judged ones that fail."""

    rows: tuple[Row, ...]
    slopes: tuple[Slope, ...]
    judged: str
    tolerance: float

    @property
    def drift(self) -> list[Slope]:
        """The places of the judged parametrisation where activations drift with the width."""
        return [slope for slope in self.of(self.judged) if slope.verdict not in ("flat", "still")]

    @property
    def twins(self) -> list[Slope]:
        """The slopes of the parametrisation that is measured for comparison, if any."""
        return [slope for slope in self.slopes if slope.parametrisation != self.judged]

    @property
    def widths(self) -> list[int]:
        """Rising."""
        return sorted({row.width for row in self.rows})

    @property
    def steps(self) -> int:
        """Of training, at each width."""
        return max(row.step for row in self.rows)

    def of(self, parametrisation: str) -> list[Slope]:
        """The slopes of one parametrisation."""
        return [slope for slope in self.slopes if slope.parametrisation == parametrisation]


def analyse(rows: Sequence[Row], judged: str, tolerance: float) -> Analysis:
    """What the rows tell. A place drifts where it is not finite; where the exponent of its change, or that of its first
    size, is above `tolerance`; and where that of its change is as much below both 0 and that of its first size."""
    return Analysis(tuple(rows), tuple(_slopes(rows, tolerance)), judged, tolerance)


def _slopes(rows: Sequence[Row], tolerance: float) -> Iterator[Slope]:
    last = max(row.step for row in rows)
    for rule, name in dict.fromkeys((row.parametrisation, row.place) for row in rows):
        mine = [row for row in rows if (row.parametrisation, row.place) == (rule, name)]
        at_first, _ = exponent([(row.width, row.size) for row in mine if row.step == 0])
        changes = [(row.width, row.change) for row in mine if row.step == last]
        change, half_width = exponent(changes)
        yield Slope(rule, name, at_first, change, half_width, _verdict(changes, at_first, change, tolerance))


def _verdict(changes: Sequence[tuple[int, float]], at_first: float, change: float, tolerance: float) -> str:
    if not all(math.isfinite(y) for _, y in changes):
        return "not finite"
    if not any(y for _, y in changes):
        return "still"
    if change > tolerance or at_first > tolerance:
        return "grows"
    return "flat" if change >= min(at_first, 0.0) - tolerance else "shrinks"


def exponent(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope of log y against log x by least squares, and half of its 95% interval; nan below two widths."""
    from scipy import stats

    known = [(math.log(x), math.log(y)) for x, y in points if y > 0 and math.isfinite(y)]
    if len({x for x, _ in known}) < 2:
        return math.nan, math.nan
    fit = stats.linregress([x for x, _ in known], [y for _, y in known])
    spread = stats.t.ppf(0.975, len(known) - 2) * fit.stderr if len(known) > 2 else math.nan
    return float(fit.slope), float(spread)
