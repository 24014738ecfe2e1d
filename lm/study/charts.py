"""The charts of a study's report: how sure each difference is, and how it came about over training."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lm.page import plots
from lm.page.markup import Markup, figure, tag
from lm.page.plots import HALF, WIDE, Interval, Line
from lm.study.statistics import Difference, direction, measured, pairs, word
from lm.study.tables import alike, named
from lm.study.trial import DIVERGED, Result, step_flops

Points = Sequence[tuple[float, float]]
POINTS = 240  # of a curve: more than a page shows
SMOOTHED = 40  # a training loss is averaged over one part in so many of its run
CUT = 0.06  # the first part of a run, whose losses would flatten all others
SETTLED = 0.2  # differences on the way are shown from here on
GOOD, BAD, GREY = 2, 4, -1


def forest(results: Sequence[Result], found: Sequence[Difference], base: str, measure: str) -> Markup:
    """The differences with their intervals, best first; nothing, where no seed has finished in two arms."""
    arms = measured(results, measure)
    known = [d for d in found if d.seeds]
    rows = [
        Interval(
            d.arm,
            d.difference,
            d.low,
            d.high,
            (d.unpaired_low, d.unpaired_high),
            [ours - reference for _, reference, ours in pairs(arms[base], arms[d.arm])],
            {"better": GOOD, "worse": BAD}.get(word(d, measure), GREY),
        )
        for d in sorted(known, key=lambda d: -direction(measure) * d.difference)
    ]
    side = {-1: ": left is better", 1: ": right is better"}.get(direction(measure), "")
    note = "with 95% intervals, thick paired, thin unpaired; small dots are single seeds"
    if not rows:
        return Markup("")
    drawn = plots.intervals("forest", rows, f"{named(measure)} less that of {base}{side}")
    return figure(f"Difference to {base}", drawn, note)


def curves(results: Sequence[Result], base: str, measure: str) -> Markup:
    """Training loss, held-out `measure`, and the difference on the way, as means and ranges over the seeds."""
    shown = chosen(results, base, measure)
    others = [arm for arm in shown if arm != base]
    colours = {arm: GREY if arm == base else others.index(arm) for arm in shown}
    scales, across = _across([r for r in results if r.trial.arm in shown])
    left = len({r.trial.arm for r in results}) - len(shown)
    note = f"; the {len(shown)} best arms, {left} are left out" if left > 0 else ""
    training = _training(results, colours, scales, across, note)
    charts = [
        *training,
        *_evaluated(results, colours, scales, across, measure, beside=bool(training)),
        *_apart(results, colours, base, measure),
    ]
    return tag("div", *charts, class_="charts") if charts else Markup("")


def chosen(results: Sequence[Result], base: str, measure: str) -> list[str]:
    """The arms that are drawn: all, or where colours do not suffice the base and the best others."""
    arms = measured(results, measure)
    others = [arm for arm in arms if arm != base]
    if len(others) > plots.COLOURS:
        means = {arm: -direction(measure) * arms[arm].mean for arm in others if math.isfinite(arms[arm].mean)}
        others = sorted(means, key=lambda arm: means[arm])[: plots.COLOURS]
    return [*([base] if base in arms else []), *others]


def _across(results: Sequence[Result]) -> tuple[dict[str, float], str]:
    """What a step of each arm is on the axis: 1, or its FLOPs, where the arms have different numbers of steps."""
    first = {r.trial.arm: r.trial.experiment for r in reversed(results)}
    if len({experiment.steps for experiment in first.values()}) < 2:
        return dict.fromkeys(first, 1.0), "step"
    return {arm: step_flops(experiment) for arm, experiment in first.items()}, "training FLOPs"


def band(runs: Sequence[Points]) -> tuple[list[float], list[float], list[float], list[float]]:
    """(x, mean, least, most) over the runs, where all have a point, of not more than POINTS points."""
    values = [dict(run) for run in runs]
    common = sorted(set.intersection(*(set(one) for one in values))) if values else []
    x = [common[i] for i in np.unique(np.linspace(0, len(common) - 1, POINTS).round().astype(int))] if common else []
    table = np.array([[one[at] for at in x] for one in values])
    return (x, table.mean(0).tolist(), table.min(0).tolist(), table.max(0).tolist()) if x else ([], [], [], [])


def _lines(
    results: Sequence[Result], colours: Mapping[str, int], points: Callable[[Result], Points], small: bool = False
) -> list[Line]:
    """A line with its band for each arm that has finished runs. A `small` chart has dots, and no room for labels."""
    lines = []
    for arm, colour in colours.items():
        runs = [points(r) for r in results if r.trial.arm == arm and r.finished]
        x, mean, low, high = band([run for run in runs if run])
        if x:
            bounds = (low, high) if len(runs) > 1 else ((), ())
            lines.append(Line(x, mean, "" if small else arm, colour, dots=small, low=bounds[0], high=bounds[1]))
    return lines


def _training(
    results: Sequence[Result], colours: Mapping[str, int], scales: Mapping[str, float], across: str, note: str
) -> list[Markup]:
    def points(result: Result) -> Points:
        smooth = plots.smoothed([loss for _, loss in result.curve], len(result.curve) / SMOOTHED)
        scale = scales[result.trial.arm]
        return [(step * scale, loss) for (step, _), loss in zip(result.curve, smooth, strict=True)]

    lines = _lines(results, colours, points)
    if not lines or not alike(results):
        return []
    top = max(value for line in lines for value in line.y[int(CUT * len(line.y)) :])
    diverged = [r for r in results if r.status == DIVERGED and r.trial.arm in colours and r.curve]
    faint = [
        Line([x for x, _ in points(r)], [y for _, y in points(r)], colour=colours[r.trial.arm], faint=True)
        for r in diverged
    ]
    least = min(value for line in lines for value in (line.low or line.y))
    said = "nats; smoothed, the mean and the range over seeds" + ("; thin: runs that diverged" if faint else "") + note
    top += 0.05 * (top - least)
    drawn = plots.chart("loss", [*faint, *lines], size=WIDE, top=top if top > least else None, across=across)
    return [tag("div", figure("Training loss", drawn, said), class_="wide")]


def _evaluated(
    results: Sequence[Result],
    colours: Mapping[str, int],
    scales: Mapping[str, float],
    across: str,
    measure: str,
    beside: bool,
) -> list[Markup]:
    """`beside`: a larger chart names the arms."""

    def points(result: Result) -> Points:
        evaluations = [(step, found[measure]) for step, found in result.evaluations if measure in found]
        settled = [e for e in evaluations if e[0] >= CUT * result.trial.experiment.steps]
        return [(step * scales[result.trial.arm], value) for step, value in settled]

    lines = _lines(results, colours, points, small=beside)
    if not lines:
        return []
    size = HALF if beside else WIDE
    drawn = plots.chart("heldout", lines, size=size, across=across, percent=measure.endswith("accuracy"))
    note = "mean and range over seeds" + (", colours as above" if beside else "")
    whole = figure(f"Held-out {named(measure)}", drawn, note)
    return [whole if beside else tag("div", whole, class_="wide")]


def _apart(results: Sequence[Result], colours: Mapping[str, int], base: str, measure: str) -> list[Markup]:
    """The difference to the base at every evaluation, of arms with as many steps."""
    runs = {(r.trial.arm, r.trial.seed): r for r in results if r.finished}

    def points(result: Result) -> Points:
        reference = runs.get((base, result.trial.seed))
        steps = result.trial.experiment.steps
        if reference is None or reference.trial.experiment.steps != steps:
            return []
        theirs = {step: found.get(measure, math.nan) for step, found in reference.evaluations}
        return [
            (step, found[measure] - theirs[step])
            for step, found in result.evaluations
            if measure in found and step in theirs and step >= SETTLED * steps
        ]

    lines = _lines(results, {arm: colour for arm, colour in colours.items() if arm != base}, points, small=True)
    if not lines or not any(len(line.x) > 1 for line in lines):
        return []
    lines = [Line([lines[0].x[0], lines[0].x[-1]], [0, 0], colour=GREY), *lines]
    note = f"held-out {named(measure)} less that of {base}, at the same seed and step"
    return [figure("Difference on the way", plots.chart("apart", lines), note)]
