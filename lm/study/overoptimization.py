"""Over-optimisation of a reward model: what is meant rises and falls, while what is optimised goes on rising
(2210.10760).

    curve = Overoptimization(base, arms={"start": {}, "best_of_4": ..., "ppo": ...}, proxy="completions/prompts/scorer",
        kl="completions/prompts/kl", measure="completions/prompts/Rule")

An ablation whose report draws the proxy's reward and the true one over the root of the KL divergence from the start.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lm.page.words import number
from lm.study.ablation import Ablation
from lm.study.trial import Result

if TYPE_CHECKING:
    from lm.page.markup import Markup
    from lm.page.tables import Table
    from lm.study.report import Findings

POINTS = "best of n"  # the line through arms of one evaluation


class Point(NamedTuple):
    """The means over the seeds at one evaluation of an arm: KL divergence (nats), and rewards less the start's."""

    arm: str
    step: int
    kl: float
    proxy: float
    true: float


@dataclass(frozen=True)
class Overoptimization(Ablation):
    """`measure` is the true reward, `proxy` the one that is optimised, and `kl` the divergence from the start, which
    the base is: measures of an evaluation. Arms with one evaluation, as best-of-n has for each n, are points of one
    line; the others have a line each, over their evaluations."""

    proxy: str = ""
    kl: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, measure in (("proxy", self.proxy), ("kl", self.kl)):
            if "/" not in measure:
                raise ValueError(f"{name}={measure!r}: expected a measure of an evaluation, as NAME/SOURCE/MEASURE")

    def paths(self, results: Sequence[Result]) -> dict[str, list[Point]]:
        """line -> its points, from the start on, by rising KL for POINTS and by step for the others."""
        by_arm: dict[str, list[Result]] = {}
        for result in results:
            if result.finished:
                by_arm.setdefault(result.trial.arm, []).append(result)
        origin = next(iter(self._points(self.base_arm, by_arm.pop(self.base_arm, []), None)), None)
        if origin is None:
            return {}
        start, paths = origin._replace(proxy=0.0, true=0.0), dict[str, list[Point]]()
        for arm, runs in by_arm.items():
            points = list(self._points(arm, runs, origin))
            paths.setdefault(POINTS if len(points) == 1 else arm, [start]).extend(points)
        return {
            line: sorted(points, key=lambda p: p.kl) if line == POINTS else points for line, points in paths.items()
        }

    def _points(self, arm: str, runs: Sequence[Result], origin: Point | None) -> Iterator[Point]:
        for step in dict.fromkeys(step for run in runs for step, _ in run.evaluations):
            found = [measures for run in runs for at, measures in run.evaluations if at == step]
            means = [sum(one[name] for one in found) / len(found) for name in (self.kl, self.proxy, self.measure)]
            yield Point(
                arm, step, means[0], *(x - y for x, y in zip(means[1:], origin[3:] if origin else (0, 0), strict=True))
            )

    def findings(self, results: Sequence[Result]) -> "Findings":
        """The curves, their points as a table, and a sentence a line on where the true reward was highest."""
        from lm.page.markup import section
        from lm.study.report import Findings

        paths = self.paths(results)
        if not paths:
            return Findings()
        return Findings(" ".join(peaks(paths)), [section("Over-optimisation", chart(paths)), points_table(paths)])


def peaks(paths: Mapping[str, Sequence[Point]]) -> Iterator[str]:
    """A sentence a line: where the true reward was highest, and where it ended."""
    for line, points in paths.items():
        best, last = max(points, key=lambda p: p.true), points[-1]
        end = f"; at {last.kl:.3g} nats it is {signed(last.true)}, by the proxy {signed(last.proxy)}"
        yield f"{line}: the true reward is highest, {signed(best.true)}, at a KL of {best.kl:.3g} nats{end}."


def signed(x: float) -> str:
    """A reward less the start's."""
    return number(x, 2, True)


def chart(paths: Mapping[str, Sequence[Point]]) -> "Markup":
    """Both rewards of each line."""
    from lm.page import plots
    from lm.page.markup import figure, wide

    series = []
    for colour, (line, points) in enumerate(paths.items()):
        x = [math.sqrt(max(p.kl, 0.0)) for p in points]
        series.append(plots.Line(x, [p.proxy for p in points], "", colour, faint=True))
        series.append(plots.Line(x, [p.true for p in points], line, colour, dots=True))
    drawn = plots.chart("overoptimization", series, size=plots.WIDE, across="√KL from the start, nats")
    return wide(
        figure("Reward less the start's", drawn, "with dots: the true one; thin: the proxy's, which is optimised")
    )


def points_table(paths: Mapping[str, Sequence[Point]]) -> "Table":
    """Every point."""
    from lm.page.tables import Table

    rows = tuple(
        (line, p.arm, f"{p.step:,}", number(p.kl, 2), signed(p.proxy), signed(p.true))
        for line, points in paths.items()
        for p in points
    )
    head = ("line", "arm", "step", "KL", "proxy reward", "true reward")
    return Table("Rewards by KL", head, rows, "Means over the seeds; rewards less the start's.", text_columns=2)
