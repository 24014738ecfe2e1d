"""The charts of a study's report: how sure each difference is, and how it came about over training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lm.page import markup, plots
from lm.page.markup import Markup, figure
from lm.page.plots import HALF, WIDE, Interval, Line
from lm.page.svg import COLOURS
from lm.run.outcome import DIVERGED
from lm.study.statistics import Difference, measured, pairs
from lm.study.tables import alike
from lm.study.trial import Result, step_flops
from lm.study.verdicts import best_first, direction, title, word

Points = Sequence[tuple[float, float]]
POINTS = 240  # of a curve: more than a page shows
SMOOTHED = 40  # a training loss is averaged over one part in so many of its run
CUT = 0.06  # the first part of a run, whose losses would flatten all others
SETTLED = 0.2  # differences on the way are shown from here on
GREY = -1
COLOUR = {"better": 2, "worse": 4}


def forest(results: Sequence[Result], compared: Sequence[Difference], base: str, measure: str) -> Markup:
    """The differences with their intervals, best first; nothing, where no seed has finished in two arms."""
    arms = measured(results, measure)
    rows = []
    for d in best_first([d for d in compared if d.seeds], measure):
        dots = [ours - reference for _, reference, ours in pairs(arms[base], arms[d.arm])]
        wide, colour = (d.unpaired_low, d.unpaired_high), COLOUR.get(word(d, measure), GREY)
        rows.append(Interval(d.arm, d.difference, d.low, d.high, wide, dots, colour))
    if not rows:
        return Markup("")
    side = {-1: ": left is better", 1: ": right is better"}.get(direction(measure), "")
    drawn = plots.intervals("forest", rows, f"{title(measure)} less that of {base}{side}")
    note = "with 95% intervals, thick paired, thin unpaired; small dots are single seeds"
    return figure(f"Difference to {base}", drawn, note)


def curves(results: Sequence[Result], base: str, measure: str) -> Markup:
    """Training loss, held-out `measure`, and the difference on the way, as means and ranges over the seeds."""
    return Curves(results, base, measure).charts()


def chosen(results: Sequence[Result], base: str, measure: str) -> list[str]:
    """The arms that are drawn: all, or where colours do not suffice the base and the best others."""
    arms = measured(results, measure)
    others = [arm for arm in arms if arm != base]
    if len(others) > COLOURS:
        means = {arm: -direction(measure) * arms[arm].mean for arm in others if math.isfinite(arms[arm].mean)}
        others = sorted(means, key=lambda arm: means[arm])[:COLOURS]
    return [*([base] if base in arms else []), *others]


def band(runs: Sequence[Points]) -> tuple[list[float], list[float], list[float], list[float]]:
    """(x, mean, least, most) over the runs, where all have a point, of not more than POINTS points."""
    values = [dict(run) for run in runs]
    common = sorted(set.intersection(*(set(one) for one in values))) if values else []
    x = [common[i] for i in np.unique(np.linspace(0, len(common) - 1, POINTS).round().astype(int))] if common else []
    table = np.array([[one[at] for at in x] for one in values])
    return (x, table.mean(0).tolist(), table.min(0).tolist(), table.max(0).tolist()) if x else ([], [], [], [])


@dataclass(frozen=True)
class Curves:
    """The curves of `results` over training: a colour an arm, grey the `base`."""

    results: Sequence[Result]
    base: str
    measure: str

    @cached_property
    def colours(self) -> dict[str, int]:
        """Of the arms that are drawn."""
        shown = chosen(self.results, self.base, self.measure)
        others = [arm for arm in shown if arm != self.base]
        return {arm: GREY if arm == self.base else others.index(arm) for arm in shown}

    @cached_property
    def scales(self) -> dict[str, float]:
        """What a step of each arm is on the x axis: 1, or its FLOPs, where the arms have different numbers of steps."""
        first = {r.trial.arm: r.trial.experiment for r in reversed(self.results) if r.trial.arm in self.colours}
        same = len({experiment.steps for experiment in first.values()}) < 2
        return {arm: 1.0 if same else step_flops(experiment) for arm, experiment in first.items()}

    @property
    def across(self) -> str:
        """The label of the x axis."""
        return "step" if set(self.scales.values()) <= {1.0} else "training FLOPs"

    def charts(self) -> Markup:
        """All of them."""
        training = self._training()
        return markup.charts([training, self._evaluated(named=not training), self._on_the_way()])

    def _lines(self, points: Callable[[Result], Points], small: bool = False, arms: Sequence[str] = ()) -> list[Line]:
        """A line with its band for each arm that has finished runs. A `small` chart has dots and no labels."""
        lines = []
        for arm in arms or self.colours:
            runs = [points(r) for r in self.results if r.trial.arm == arm and r.finished]
            x, mean, low, high = band([run for run in runs if run])
            if x:
                low, high = (low, high) if len(runs) > 1 else ([], [])
                lines.append(Line(x, mean, "" if small else arm, self.colours[arm], dots=small, low=low, high=high))
        return lines

    def _loss(self, result: Result) -> Points:
        """The smoothed training loss."""
        smooth = plots.smoothed([loss for _, loss in result.curve], len(result.curve) / SMOOTHED)
        scale = self.scales[result.trial.arm]
        return [(step * scale, loss) for (step, _), loss in zip(result.curve, smooth, strict=True)]

    def _reached(self, result: Result) -> Points:
        """The evaluations, without those of the first part."""
        least, scale = CUT * result.trial.experiment.steps, self.scales[result.trial.arm]
        known = [(step, measures[self.measure]) for step, measures in result.evaluations if self.measure in measures]
        return [(step * scale, value) for step, value in known if step >= least]

    def _training(self) -> Markup:
        lines = self._lines(self._loss)
        if not lines or not alike(self.results):
            return Markup("")
        lost = [r for r in self.results if r.status == DIVERGED and r.trial.arm in self.colours and r.curve]
        top = max(value for line in lines for value in line.y[int(CUT * len(line.y)) :])
        least = min(value for line in lines for value in (line.low or line.y))
        faint = []
        for result in lost:
            x, y = zip(*self._loss(result), strict=True)
            faint.append(Line(x, y, colour=self.colours[result.trial.arm], faint=True))
        cut = top + 0.05 * (top - least) if top > least else None
        drawn, narrow = (
            plots.chart(name, [*faint, *lines], size=size, top=cut, across=self.across)
            for name, size in (("loss", WIDE), ("lossnarrow", HALF))
        )
        left = len({r.trial.arm for r in self.results}) - len(self.colours)
        note = "nats; smoothed, the mean and the range over seeds"
        note += "; thin: runs that diverged" if faint else ""
        note += f"; the {len(self.colours)} best arms, {left} are left out" if left > 0 else ""
        return markup.wide(figure("Training loss", drawn, note, narrow))

    def _evaluated(self, named: bool) -> Markup:
        """The held-out measure; `named`: this chart names the arms, as there is no larger one that does."""
        lines = self._lines(self._reached, small=not named)
        if not lines:
            return Markup("")
        percent = self.measure.endswith("accuracy")
        drawn = plots.chart("heldout", lines, size=WIDE if named else HALF, across=self.across, percent=percent)
        note = "mean and range over seeds" + ("" if named else ", colours as above")
        shown = figure(f"Held-out {title(self.measure)}", drawn, note)
        return markup.wide(shown) if named else shown

    def _on_the_way(self) -> Markup:
        """The difference to the base at every evaluation, of arms with as many steps."""
        runs = {r.trial.seed: r for r in self.results if r.finished and r.trial.arm == self.base}

        def points(result: Result) -> Points:
            reference, steps = runs.get(result.trial.seed), result.trial.experiment.steps
            if reference is None or reference.trial.experiment.steps != steps:
                return []
            theirs = {step: measures.get(self.measure, math.nan) for step, measures in reference.evaluations}
            return [
                (step, measures[self.measure] - theirs[step])
                for step, measures in result.evaluations
                if self.measure in measures and step in theirs and step >= SETTLED * steps
            ]

        others = [arm for arm in self.colours if arm != self.base]
        lines = self._lines(points, small=True, arms=others) if others else []
        if not any(len(line.x) > 1 for line in lines):
            return Markup("")
        zero = Line([lines[0].x[0], lines[0].x[-1]], [0, 0], colour=GREY)
        note = f"held-out {title(self.measure)} less that of {self.base}, at the same seed and step"
        return figure("Difference on the way", plots.chart("apart", [zero, *lines]), note)
