"""What a sweep tells: the best settings and how sure that is, which settings matter, and the measure over each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lm.page.markup import Markup, figure, section, tag
from lm.page.plots import HALF, INK, MUTED, WIDE, _axes, _series, _svg
from lm.study.space import Choice, Draw, Range, Settings, Space, label, ranges
from lm.study.statistics import ALPHA, LEVEL, differences
from lm.study.tables import NONE, Table, csv_text, named
from lm.study.trial import FINISHED, PRUNED, Result

EDGE = 0.02  # a share of a range this near to its end is at its end
MOST_LABELS = 8  # of options on an axis
MOST_ROWS = 50  # of the table of arms: the best


@dataclass(frozen=True)
class Tried:
    """An arm: what was drawn for it, its `settings`, the `values` of its seeds that finished, their `mean` with
    Student's 95% interval (nan below two seeds), and the `status` of a run that did not finish, if there is one."""

    arm: str
    drawn: Draw
    settings: Settings
    values: tuple[float, ...]
    status: str

    @property
    def mean(self) -> float:
        """Over the seeds that finished; nan where there are none."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def half_width(self) -> float:
        """Of the interval of the mean: t(0.975, n - 1) s / sqrt(n)."""
        n = len(self.values)
        return float(stats.t.ppf(1 - ALPHA / 2, n - 1) * np.std(self.values, ddof=1) / n**0.5) if n > 1 else math.nan

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def whole(self) -> bool:
        """Whether all its runs finished."""
        return self.status == FINISHED


@dataclass(frozen=True)
class Best:
    """The arms as `tried`, best first and those without a result last. `level` are the arms that the data do not tell
    from the best one; None, where one seed tells nothing. `importance` by the names of the settings (tpe.py), or why it
    could not be had; `edges` the settings of the best arm that stand at the end of their range."""

    measure: str
    sign: int
    tried: tuple[Tried, ...]
    ranges: Mapping[str, Range]
    level: tuple[str, ...] | None
    importance: Mapping[str, float] | str
    edges: tuple[str, ...]

    @property
    def first(self) -> Tried:
        """The best arm."""
        return self.tried[0]

    @property
    def headline(self) -> str:
        """The best settings, and how sure that is."""
        first, n = self.first, len(self.first.values)
        most = "highest" if self.sign > 0 else "lowest"
        early = sum(one.status == PRUNED for one in self.tried)
        sure = f"95% interval {first.low:.4g} to {first.high:.4g} over {n} seeds" if n > 1 else "one seed: no interval"
        arms = f"{len(self.tried)} arms{f', {early} of them stopped early' if early else ''}"
        said = f"Of {arms}, {first.arm} has the {most} {named(self.measure)}: {first.mean:.4g} ({sure}), with "
        said += f"{_and([f'{path} {_short(one)}' for path, one in first.settings.items()])}."
        if self.level:
            also = _and(list(self.level[:5])) + (f" and {len(self.level) - 5} more" if len(self.level) > 5 else "")
            said += f" The data do not tell it from {also}."
        for path in self.edges:
            said += f" Its {path} is at the end of the range: the best may lie beyond."
        return said


def best(
    results: Sequence[Result], chosen: Mapping[str, tuple[Draw, Settings]], space: Space, measure: str, sign: int
) -> Best:
    """The analysis of arms that are `chosen` by name. An arm of which a run did not finish stands behind all others.
    Raises ValueError where no run has finished, or none has the measure."""
    tried = sorted(
        (_tried(arm, *what, [r for r in results if r.trial.arm == arm], measure) for arm, what in chosen.items()),
        key=lambda one: (not one.whole, not one.values, -sign * one.mean if one.values else 0.0),
    )
    if not tried or not tried[0].values:
        known = dict.fromkeys(name for result in results for name in result.measures)
        raise ValueError(
            f"no run has the measure {measure!r}: known: {', '.join(known)}" if known else "no run has finished"
        )
    done, first, every = [one for one in tried if one.whole], tried[0], ranges(space)
    weighed = _weighed(done, every, sign)
    edges = tuple(name for name, drawn in first.drawn.items() if _at_edge(every[name], drawn))
    return Best(measure, sign, tuple(tried), every, _level(results, done, first, measure), weighed, edges)


def _weighed(done: Sequence[Tried], ranges: Mapping[str, Range], sign: int) -> Mapping[str, float] | str:
    try:
        from lm.study.tpe import importance
    except ValueError as error:
        return str(error)
    return importance([one.drawn for one in done], [one.mean for one in done], ranges, sign)


def _tried(arm: str, drawn: Draw, settings: Settings, runs: Sequence[Result], measure: str) -> Tried:
    values = [r.measures[measure] for r in runs if r.finished and math.isfinite(r.measures.get(measure, math.nan))]
    other = [r.status for r in runs if not r.finished]
    status = other[0] if other else FINISHED if len(values) == len(runs) > 0 else "without a value"
    return Tried(arm, drawn, settings, tuple(values), status)


def _level(results: Sequence[Result], done: Sequence[Tried], first: Tried, measure: str) -> tuple[str, ...] | None:
    """The arms that a paired t-test with Holm's correction does not tell from the first."""
    if len(first.values) < 2:
        return None
    arms = {one.arm for one in done} | {first.arm}
    found = differences([r for r in results if r.trial.arm in arms], first.arm, measure)
    return tuple(one.arm for one in found if not one.p_holm < ALPHA)


def _at_edge(one: Range, drawn: object) -> bool:
    if isinstance(one, Choice):
        return False
    share = one.place(drawn)
    return min(share, 1 - share) <= EDGE


def _short(one: object) -> str:
    return f"{one:.3g}" if isinstance(one, float) else label(one)


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def sections(analysis: Best) -> list[Markup | Table]:
    """The charts and tables of a sweep, for a report."""
    tried, every, measure = analysis.tried, analysis.ranges, analysis.measure
    charts = [parallel(tried, every, measure, analysis.sign), *slices(tried, every, measure)]
    shown = section("Settings", tag("div", *charts, class_="charts") if any(charts) else "")
    paths = list(dict.fromkeys(path for one in tried for path in one.settings))
    rows = tuple(
        (
            one.arm,
            one.status,
            *(_short(one.settings[path]) if path in one.settings else NONE for path in paths),
            f"{one.mean:.4g}" if one.values else NONE,
            f"{one.low:.4g} to {one.high:.4g}" if len(one.values) > 1 else NONE,
        )
        for one in tried[:MOST_ROWS]
    )
    return [
        shown,
        *_importance(analysis),
        Table(
            "Arms, the best first",
            ("arm", "status", *paths, named(measure), f"{LEVEL:.0%} interval"),
            rows,
            "The best of many arms was chosen by the same runs, which flatters it: run it with other seeds before you "
            "rely on its value.",
            text_columns=2,
        ),
    ]


def record(analysis: Best) -> str:
    """A row an arm, in their order: its settings, and what it reached; see `Tried`."""
    paths = sorted({path for one in analysis.tried for path in one.settings})
    rows = [
        [one.arm, one.status, *(_plain(one.settings.get(path)) for path in paths), *_reached(one)]
        for one in sorted(analysis.tried, key=lambda one: one.arm)
    ]
    return csv_text(["arm", "status", *paths, "seeds", "mean", "low", "high"], rows)


def _plain(setting: Any) -> Any:
    return "" if setting is None else setting if isinstance(setting, float | int) else label(setting)


def _reached(one: Tried) -> list[float]:
    return [len(one.values), one.mean, one.low, one.high]


def _importance(analysis: Best) -> list[Markup | Table]:
    if isinstance(analysis.importance, str):
        return [section("Which settings matter", tag("p", f"Not weighed: {analysis.importance}."))]
    rows = tuple((name, f"{share:.0%}") for name, share in analysis.importance.items())
    note = (
        "How much each setting decides whether an arm is among the best, by PED-ANOVA (arXiv:2304.10255). With few "
        "arms it is a hint."
    )
    return [Table("Which settings matter", ("setting", "share"), rows, note)] if rows else []


# ---------------------------------------------------------------- charts


def parallel(tried: Sequence[Tried], ranges: Mapping[str, Range], measure: str, sign: int) -> Markup:
    """A line an arm across the settings, the last axis its measure: the best in colour, the others grey. `sign` as
    statistics.direction."""
    done = [one for one in tried if math.isfinite(one.mean)]
    shared = [path for path in ranges if all(path in one.drawn for one in done)]
    if len(done) < 2 or not shared:
        return Markup("")
    means = [one.mean for one in done]
    low, high = min(means), max(means)
    best = sorted(done, key=lambda one: -sign * one.mean)[: max(1, len(done) // 5)]
    drawing, axes = _axes("parallel", WIDE)
    axes.grid(axis="y", visible=False)
    for one in sorted(done, key=lambda one: one in best):
        y = [ranges[path].place(one.drawn[path]) for path in shared]
        y.append((one.mean - low) / (high - low) if high > low else 0.5)
        style = dict(color=_series(0), linewidth=1.6) if one in best else dict(color=MUTED, linewidth=0.8, alpha=0.4)
        axes.plot(range(len(y)), y, **style)
    for x, path in enumerate(shared):
        _draw_ticks(axes, x, ranges[path])
    for end, value in ((0.0, low), (1.0, high)):
        axes.annotate(f"{value:.4g}", (len(shared), end), xytext=(4, 0), textcoords="offset points", va="center")
    for x in range(len(shared) + 1):
        axes.axvline(x, color=MUTED, linewidth=0.6)
    axes.set_xticks(range(len(shared) + 1), [*shared, named(measure)], color=INK)
    axes.set_yticks([])
    axes.set_xlabel("")
    axes.set_ylim(-0.06, 1.06)
    axes.margins(x=0.09)
    return tag(
        "div",
        figure("All settings", _svg(drawing, "parallel"), "a line an arm; in colour the best fifth"),
        class_="wide",
    )


def _draw_ticks(axes: Any, x: int, one: Range) -> None:
    for y, text in one.ticks()[:MOST_LABELS]:
        axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", color=MUTED, fontsize=7.5)


def slices(tried: Sequence[Tried], ranges: Mapping[str, Range], measure: str) -> list[Markup]:
    """The measure over one setting at a time, of the arms that have it: a dot a mean, with its interval over seeds."""
    charts = []
    for i, (path, one) in enumerate(ranges.items()):
        done = [t for t in tried if path in t.drawn and math.isfinite(t.mean)]
        if not done:
            continue
        drawing, axes = _axes(f"slice{i}", HALF)
        for t in done:
            x = one.number(t.drawn[path])
            axes.plot([x], [t.mean], "o", color=_series(i), markersize=4, alpha=0.8)
            if not math.isnan(t.low):
                axes.plot([x, x], [t.low, t.high], color=_series(i), linewidth=1.0, alpha=0.6)
        if one.log:
            axes.set_xscale("log")
        elif one.labels:
            axes.set_xticks(range(len(one.labels)), [label[:16] for label in one.labels])
            axes.margins(x=0.15)
        axes.set_xlabel(path)
        charts.append(figure(path, _svg(drawing, f"slice{i}"), named(measure)))
    return charts
