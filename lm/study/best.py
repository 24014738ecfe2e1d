"""The outcome of a sweep: the best settings and how sure that is, which settings matter, and the measure over each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from lm.page import plots
from lm.page.markup import Markup, charts, figure, section, tag, wide
from lm.page.plots import Axis, Dots
from lm.page.tables import Table, csv_text
from lm.page.words import ALPHA, LEVEL, NONE, Estimate, join_and, probability
from lm.run.outcome import PRUNED
from lm.study.report import Findings
from lm.study.space import Choice, Draw, Range, Settings, Space, label, ranges
from lm.study.statistics import Measured, measured, pairwise, student
from lm.study.trial import FINISHED, Result
from lm.study.verdicts import extreme, title

EDGE = 0.02  # a share of a range this near to its end is at its end
MOST_LABELS = 8  # of options on an axis
MOST_ROWS = 50  # of the table of arms: the best
MOST_TIED = 5  # arms in a sentence
FLATTERED = (
    "The same runs selected the best arm, so its mean is flattered: confirm it with other seeds. Intervals and p are "
    "corrected for the choice: the intervals hold for all arms at once (Student's t, Bonferroni), and p is that of the "
    "paired t-test against the best arm after Holm's correction over all pairs of arms."
)
WEIGHED = "Each setting's share in being among the best arms (PED-ANOVA, arXiv:2304.10255); a hint with few arms."


@dataclass(frozen=True, kw_only=True)
class ArmResult(Measured):
    """An arm with what was drawn for it, its `settings`, and the `status` of a run that did not finish, if any.

    `among` is the number of arms that the best was chosen from. `p` says how surely the arm differs from the best: that
    of their paired t-test after Holm's correction over all pairs of arms; nan where there is no test."""

    drawn: Draw
    settings: Settings
    status: str
    among: int
    p: float

    @property
    def estimate(self) -> Estimate:
        """The mean with an interval that holds although the arm may have been chosen by these values."""
        return student(list(self.values.values()), self.among)


@dataclass(frozen=True)
class Best:
    """The `arms`, best first and those without a result last. `tied` are those that the data do not tell from the best;
    `importance` is by the names of the settings (tpe.py), or why it could not be had; `edges` are the settings of the
    best arm that stand at the end of their range; `remark` is on the number of arms."""

    measure: str
    sign: int
    arms: tuple[ArmResult, ...]
    ranges: Mapping[str, Range]
    tied: tuple[str, ...]
    importance: Mapping[str, float] | str
    edges: tuple[str, ...]
    remark: str = ""

    @property
    def headline(self) -> str:
        """The best settings, and how sure that is."""
        first, early = self.arms[0], sum(one.status == PRUNED for one in self.arms)
        text = f"Of {len(self.arms)} arms{f', {early} of them stopped early' if early else ''}, {first.arm} has the "
        text += f"{extreme(self.sign)} {title(self.measure)}: {first.mean:.4g} "
        text += f"{self._interval()}, with "
        text += f"{join_and(f'{path} {_short(one)}' for path, one in first.settings.items())}."
        text += f" The data do not tell it from {join_and(self.tied, MOST_TIED)}." if self.tied else ""
        edges = [f" Its {path} is at the end of the range: the best may lie beyond." for path in self.edges]
        return text + "".join(edges) + (f" {self.remark}" if self.remark else "")

    def _interval(self) -> str:
        """That of the best arm, in brackets."""
        first = self.arms[0]
        told = first.estimate.over_seeds(len(first.values))
        corrected = len(first.values) > 1 and first.among > 1
        return told.replace(")", f", corrected for the choice among {first.among} arms)") if corrected else told


def best(
    results: Sequence[Result], chosen: Mapping[str, tuple[Draw, Settings]], space: Space, measure: str, sign: int
) -> Best:
    """Which arm is best, and how sure that is. An arm of which a run did not finish stands behind all others.

    Args:
      results: of all arms.
      chosen: what was drawn for each arm, and the settings that this stands for.
      space: what it was drawn from.
      measure: what arms are compared by.
      sign: -1 where less of it is better, 1 where more is.

    Raises:
      ValueError: no run has finished, or none has the measure.
    """
    found, every = measured(results, measure), ranges(space)
    status = {arm: _status(arm, results, measure) for arm in chosen}
    reached = sorted(
        (found.get(arm, Measured(arm)) for arm in chosen),
        key=lambda one: (status[one.arm] != FINISHED, not one.values, -sign * one.mean if one.values else 0.0),
    )
    if not reached or not reached[0].values:
        raise ValueError("no run has finished")
    begun = [one for one in reached if one.values or one.lost]
    p = dict(zip((one.arm for one in begun), pairwise(begun)[0], strict=True))
    arms = tuple(
        ArmResult(
            **vars(one),
            drawn=drawn,
            settings=known,
            status=status[one.arm],
            among=len(begun),
            p=float(p.get(one.arm, math.nan)),
        )
        for one in reached
        for drawn, known in [chosen[one.arm]]
    )
    done, first = [one for one in arms if one.status == FINISHED], arms[0]
    edges = tuple(name for name, drawn in first.drawn.items() if _at_edge(every[name], drawn))
    return Best(measure, sign, arms, every, _tied(done, first), _weigh(done, space, sign), edges)


def _status(arm: str, results: Sequence[Result], measure: str) -> str:
    """Of the first run that did not finish; FINISHED where all did, with a finite value."""
    runs = [result for result in results if result.trial.arm == arm]
    if unfinished := [run.status for run in runs if not run.finished]:
        return unfinished[0]
    known = [run for run in runs if math.isfinite(run.measures.get(measure, math.nan))]
    return FINISHED if len(known) == len(runs) > 0 else "without a value"


def _tied(done: Sequence[ArmResult], first: ArmResult) -> tuple[str, ...]:
    """The arms that are not told from the first; none with one seed, which leaves it open."""
    return tuple(one.arm for one in done if one.arm != first.arm and not one.p < ALPHA and len(first.values) > 1)


def _weigh(done: Sequence[ArmResult], space: Space, sign: int) -> Mapping[str, float] | str:
    try:
        from lm.study.tpe import Search
    except ValueError as error:
        return str(error)
    return Search(space, sign).importance([one.drawn for one in done], [one.mean for one in done])


def _at_edge(one: Range, drawn: object) -> bool:
    share = 0.5 if isinstance(one, Choice) else one.place(drawn)
    return min(share, 1 - share) <= EDGE


def _short(one: object) -> str:
    return f"{one:.3g}" if isinstance(one, float) else label(one)


# ---------------------------------------------------------------- for the report


def findings(analysis: Best) -> Findings:
    """The charts, tables and record of a sweep."""
    drawn = charts([_parallel(analysis), *_slices(analysis)])
    return Findings(
        analysis.headline,
        [section("Settings", drawn), *_importance(analysis), _table(analysis)],
        {"settings.csv": _record(analysis)},
        lists_arms=True,
    )


def _table(analysis: Best) -> Table:
    paths = list(dict.fromkeys(path for one in analysis.arms for path in one.settings))
    rows = tuple(
        (
            *(one.arm, one.status),
            *(_short(one.settings[path]) if path in one.settings else NONE for path in paths),
            f"{one.mean:.4g}" if one.values else NONE,
            one.estimate.span(),
            probability(one.p),
        )
        for one in analysis.arms[:MOST_ROWS]
    )
    head = ("arm", "status", *paths, title(analysis.measure), f"{LEVEL:.0%} interval", "p")
    return Table("Arms, the best first", head, rows, FLATTERED, text_columns=2)


def _importance(analysis: Best) -> Iterator[Markup | Table]:
    name = "Which settings matter"
    if isinstance(analysis.importance, str):
        yield section(name, tag("p", f"Not weighed: {analysis.importance}."))
    elif analysis.importance:
        rows = tuple((setting, f"{share:.0%}") for setting, share in analysis.importance.items())
        yield Table(name, ("setting", "share"), rows, WEIGHED)


def _record(analysis: Best) -> str:
    """A row an arm, in their order: its settings, what it reached, and p_holm against the best."""
    paths = sorted({path for one in analysis.arms for path in one.settings})
    rows = [
        [
            *(one.arm, one.status, *(_cell(one.settings.get(path)) for path in paths)),
            *(len(one.values), *astuple(one.estimate), one.p),
        ]
        for one in sorted(analysis.arms, key=lambda one: one.arm)
    ]
    return csv_text(["arm", "status", *paths, "seeds", "mean", "low", "high", "p_holm"], rows)


def _cell(setting: Any) -> Any:
    return "" if setting is None else setting if isinstance(setting, float | int) else label(setting)


def _parallel(analysis: Best) -> Markup:
    """A line an arm across the settings that all have, the last axis its measure: the best fifth in colour."""
    done = sorted((one for one in analysis.arms if one.values), key=lambda one: analysis.sign * one.mean)
    shared = {path: one for path, one in analysis.ranges.items() if all(path in arm.drawn for arm in done)}
    if len(done) < 2 or not shared:
        return Markup("")
    low, high = sorted((done[0].mean, done[-1].mean))
    lines = [
        [
            *(one.place(arm.drawn[path]) for path, one in shared.items()),
            (arm.mean - low) / (high - low) if high > low else 0.5,
        ]
        for arm in done
    ]
    along = [Axis(path, _ticks(one)) for path, one in shared.items()]
    along.append(Axis(title(analysis.measure), [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]))
    drawn = plots.parallel("parallel", along, lines, best=max(1, len(done) // 5))
    return wide(figure("All settings", drawn, "a line an arm; in colour the best fifth"))


def _ticks(one: Range) -> list[tuple[float, str]]:
    """Places on an axis from 0 to 1, and what is written there."""
    drawn = one.labels[:MOST_LABELS] or sorted({one.at(share) for share in (0.0, 0.5, 1.0)})
    return [(one.place(x), _short(x)) for x in drawn]


def _slices(analysis: Best) -> Iterator[Markup]:
    """The measure over one setting at a time, of the arms that have it: a dot a mean, with its interval over seeds."""
    for i, (path, one) in enumerate(analysis.ranges.items()):
        arms = [arm for arm in analysis.arms if path in arm.drawn and math.isfinite(arm.mean)]
        if arms:
            drawn = [arm.drawn[path] for arm in arms]
            x = [one.labels.index(option) for option in drawn] if one.labels else drawn
            y = [arm.mean for arm in arms]
            low, high = ([getattr(arm.estimate, end) for arm in arms] for end in ("low", "high"))
            dots = Dots(x, y, colour=i, low=low, high=high)
            ticks = [name[:16] for name in one.labels]
            chart = plots.chart(f"slice{i}", [dots], across=path, log=one.log, ticks=ticks)
            yield figure(path, chart, title(analysis.measure))
