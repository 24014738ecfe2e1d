"""The outcome of a ladder: the law of its losses, how well that predicted the largest budget, and the best sizes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lm.machine.monitor import human
from lm.page import plots
from lm.page.markup import Markup, charts, figure, section
from lm.page.plots import Dots, Line
from lm.page.tables import Table, csv_text
from lm.page.words import Estimate, signed
from lm.study import fit
from lm.study.fit import ComputeOptimal, Fit, IsoFlopProfile, iso_flop_profile
from lm.study.report import Findings
from lm.study.verdicts import title

FINE = 60  # points of a curve
GREY = -1


@dataclass(frozen=True)
class Point:
    """One arm: its budget, N, D, and its loss, a mean over `seeds` runs. `heldout`: of the largest budget."""

    arm: str
    flops: float
    parameters: int
    tokens: int
    loss: float
    seeds: int
    heldout: bool


@dataclass(frozen=True)
class Prediction:
    """The law's prediction of a point that it was not fitted to."""

    point: Point
    predicted: Estimate

    @property
    def error(self) -> float:
        """Of the prediction, relative to the measured loss."""
        return self.predicted.value / self.point.loss - 1

    @property
    def inside(self) -> bool:
        """Whether the measured loss lies in the 95% interval."""
        return self.point.loss in self.predicted


@dataclass(frozen=True)
class Scaling:
    """The outcome of a ladder: the `law` (approach 3) and the `optimum` (approach 2) of all budgets but the largest,
    how well the law predicted that one, and its `profile`, with its own best size. None, where the runs do not suffice;
    then `faults` say why. `lost` runs came to no end."""

    measure: str
    convention: str
    points: tuple[Point, ...]
    predictions: tuple[Prediction, ...]
    law: Fit | None
    optimum: ComputeOptimal | None
    profile: IsoFlopProfile | None
    faults: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The score, in a sentence or two."""
        seen = {p.flops for p in self.points if not p.heldout}
        if not self.predictions:
            why = self.faults[0] if self.faults else "no run of the largest budget has finished"
            return f"The law cannot be scored: {why}."
        errors = sorted(abs(p.error) for p in self.predictions)
        inside = sum(p.inside for p in self.predictions)
        beyond = self.predictions[0].point.flops / max(seen)
        return (
            f"Fitted to {len(seen)} budgets, the law predicted the {len(errors)} runs of {beyond:.3g} times the "
            f"largest of them with an error of {errors[len(errors) // 2]:.2%} (median; at most {errors[-1]:.2%}); "
            f"{inside} of {len(errors)} lie in its 95% intervals."
        )

    @property
    def best_size(self) -> tuple[float, float]:
        """Of the largest budget: the best number of parameters as approach 2 predicts it, and as measured; nan where
        one is not known."""
        measured = self.profile.parameters if self.profile else math.nan
        if not self.optimum or not self.profile:
            return math.nan, measured
        return self.optimum.parameters_at_1 * self.profile.flops**self.optimum.parameters_exponent.value, measured


def score(
    points: Sequence[Point], measure: str, convention: str, bootstrap: int = 200, lost: tuple[str, ...] = ()
) -> Scaling:
    """Fit all points but those held out, and predict these.

    Args:
      points: the arms that have finished.
      measure: what their `loss` is.
      convention: which parameters N counts (scaling.PARAMETERS).
      bootstrap: draws for the intervals.
      lost: the runs that came to no end, in words.
    """
    seen, held = [p for p in points if not p.heldout], [p for p in points if p.heldout]
    flops, sizes, tokens, losses = _columns(seen)
    faults: list[str] = []
    law, optimum = None, None
    try:
        law = fit.fit(sizes, tokens, losses, bootstrap)
    except ValueError as error:
        faults.append(str(error))
    try:
        optimum = fit.iso_flop(flops, sizes, tokens, losses, bootstrap)
    except ValueError as error:
        faults.append(str(error))
    predictions = tuple(Prediction(p, law.predict(p.parameters, p.tokens)) for p in held) if law else ()
    profile = _profile(held) if held else None
    return Scaling(measure, convention, tuple(points), predictions, law, optimum, profile, tuple(faults), lost)


def _columns(points: Sequence[Point]) -> list[list[float]]:
    return [[getattr(p, name) for p in points] for name in ("flops", "parameters", "tokens", "loss")]


def _profile(points: Sequence[Point]) -> IsoFlopProfile:
    """Of points of one budget."""
    return iso_flop_profile(points[0].flops, *_columns(points)[1:])


# ---------------------------------------------------------------- for the report


def findings(analysis: Scaling) -> Findings:
    """The charts, tables and record of a ladder, the score of its prediction first."""
    law = "fitted to all budgets but the largest by approach 3 of arXiv:2203.15556"
    convention = "all parameters" if analysis.convention == "all" else "parameters without embeddings"
    notes = (*analysis.faults, *(f"left out: {run}" for run in analysis.lost))
    tables = [
        Table(
            "The law",
            ("", "value", "95% interval"),
            tuple((name, *_cells(estimate)) for name, estimate in _estimates(analysis)),
            f"L(N, D) = E + A/N^alpha + B/D^beta with N {convention}, {law}; approach 2 finds the best size of each "
            "budget by a parabola.",
        ),
        Table(
            "The largest budget, held out",
            ("arm", "N", "tokens", "predicted", "95% interval", "measured", "error", "inside"),
            tuple(_scored(p) for p in analysis.predictions),
            " ".join(["The law was fitted without these runs.", *_best_size(analysis)]),
        ),
        Table("Not determined", ("",), tuple((note,) for note in notes)),
    ]
    drawn = section("Scaling", charts([isoflop(analysis), predicted(analysis)]))
    return Findings(
        analysis.headline, [drawn, *(one for one in tables if one.rows)], {"scaling.csv": _record(analysis)}
    )


def _record(analysis: Scaling) -> str:
    """A row an arm: its budget, N, D and loss; of those held out, what was predicted, and between what."""
    predicted_by_arm = {p.point.arm: p.predicted for p in analysis.predictions}
    rows = []
    for p in analysis.points:
        estimate = predicted_by_arm.get(p.arm, Estimate(math.nan))
        numbers = float(p.flops), p.parameters, p.tokens, p.seeds, float(p.loss)
        rows.append([p.arm, *numbers, "yes" if p.heldout else "no", estimate.value, estimate.low, estimate.high])
    names = ("arm", "flops", "parameters", "tokens", "seeds", "mean", "heldout", "predicted", "low", "high")
    return csv_text(names, rows)


def _best_size(analysis: Scaling) -> Iterable[str]:
    size, measured = analysis.best_size
    if not math.isnan(size + measured):
        yield f"Approach 2 predicted a best size of {human(size)} parameters; measured were {human(measured)}."


def _estimates(analysis: Scaling) -> Iterable[tuple[str, Estimate]]:
    if law := analysis.law:
        for name in ("E", "A", "B", "alpha", "beta"):
            yield name, law.estimate(name)
        yield "N_best ~ C^a, approach 3", law.estimate("parameters_exponent")
    if analysis.optimum:
        yield "N_best ~ C^a, approach 2", analysis.optimum.parameters_exponent
        yield "D_best ~ C^b, approach 2", analysis.optimum.tokens_exponent


def _cells(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.4g}", estimate.span()


def _scored(p: Prediction) -> tuple[str, ...]:
    counts = f"{p.point.parameters:,}", f"{p.point.tokens:,}"
    measured = f"{p.point.loss:.4g}", signed(p.error, ".2%"), "yes" if p.inside else "no"
    return (p.point.arm, *counts, *_cells(p.predicted), *measured)


def isoflop(analysis: Scaling) -> Markup:
    """Loss over size, a curve a budget: approach 2's parabolas, the minima marked; the held-out budget in grey."""
    series: list[Line | Dots] = []
    for i, flops in enumerate(sorted({p.flops for p in analysis.points})):
        points = sorted((p for p in analysis.points if p.flops == flops), key=lambda p: (p.parameters, p.loss))
        colour, profile = GREY if points[0].heldout else i, _profile(points)
        sizes = [p.parameters for p in points]
        series.append(Dots(sizes, [p.loss for p in points], human(flops), colour))
        if not any(map(math.isnan, profile.parabola)):
            x = np.geomspace(min(sizes), max(sizes), FINE)
            series.append(Line(x.tolist(), profile(x).tolist(), colour=colour))
        if not profile.fault:
            series.append(Dots([profile.parameters], [profile.loss], colour=colour, marker="x", size=6))
    if not series:
        return Markup("")
    held = "; grey: held out" if any(p.heldout for p in analysis.points) else ""
    note = f"{title(analysis.measure)} over size, a curve a budget of FLOPs; crosses: best sizes{held}"
    return figure("Iso-FLOP profiles", plots.chart("isoflop", series, across="parameters", log=True), note)


def predicted(analysis: Scaling) -> Markup:
    """What the law says over what was measured: faint where it was fitted, with intervals where it was not."""
    if analysis.law is None:
        return Markup("")
    seen = [p for p in analysis.points if not p.heldout]
    fitted = [float(analysis.law.law.loss(p.parameters, p.tokens)) for p in seen]
    series = [Dots([p.loss for p in seen], fitted, "fitted", GREY, faint=True, size=3.5)]
    if new := analysis.predictions:
        x, y = [p.point.loss for p in new], [p.predicted.value for p in new]
        low, high = [p.predicted.low for p in new], [p.predicted.high for p in new]
        series.append(Dots(x, y, "predicted", low=low, high=high))
    drawn = plots.chart("predicted", series, across="measured", diagonal=True)
    return figure("Predicted and measured", drawn, f"{title(analysis.measure)}, 95% intervals")
