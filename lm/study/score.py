"""What a ladder tells: the law of its losses, how well that predicted the largest budget, and the best sizes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.machine.monitor import human
from lm.page.markup import Markup, figure, section, tag
from lm.page.plots import HALF, MUTED, _axes, _legend, _series, _svg
from lm.study import fit
from lm.study.fit import Estimate, Fit, Optimum, Valley
from lm.study.tables import NONE, Table, csv_text, named

FINE = 60  # points of a curve


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
    """What the law said of a point that it had not seen."""

    point: Point
    predicted: Estimate

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was found."""
        return self.predicted.value / self.point.loss - 1

    @property
    def inside(self) -> bool:
        """Whether what was found lies in the 95% interval."""
        return self.point.loss in self.predicted


@dataclass(frozen=True)
class Scaling:
    """What a ladder tells: the `law` (approach 3) and the `optimum` (approach 2) of all budgets but the largest, how
    well the law predicted that one, and its `valley`, the best size as found there. None, where the runs do not
    suffice; then `faults` say why. `lost` runs came to no end."""

    measure: str
    convention: str
    points: tuple[Point, ...]
    predictions: tuple[Prediction, ...]
    law: Fit | None
    optimum: Optimum | None
    valley: Valley | None
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
        """Of the largest budget: the best number of parameters as approach 2 predicts it, and as found; nan where one
        is not known."""
        found = self.valley.parameters if self.valley else math.nan
        if not self.optimum or not self.valley:
            return math.nan, found
        return self.optimum.parameters_at_1 * self.valley.flops**self.optimum.parameters_exponent.value, found


def score(
    points: Sequence[Point], measure: str, convention: str, bootstrap: int = 200, lost: tuple[str, ...] = ()
) -> Scaling:
    """Fit all points but those held out, and predict these."""
    seen, held = [p for p in points if not p.heldout], [p for p in points if p.heldout]
    flops, sizes, tokens, losses = _columns(seen)
    faults: list[str] = []
    law, optimum = None, None
    try:
        law = fit.fit(sizes, tokens, losses, bootstrap)
    except ValueError as error:
        faults.append(str(error))
    try:
        optimum = fit.isoflop(flops, sizes, tokens, losses, bootstrap)
    except ValueError as error:
        faults.append(str(error))
    predictions = tuple(Prediction(p, law.predict(p.parameters, p.tokens)) for p in held) if law else ()
    valley = fit.valley(held[0].flops, *_columns(held)[1:]) if held else None
    return Scaling(measure, convention, tuple(points), predictions, law, optimum, valley, tuple(faults), lost)


def _columns(points: Sequence[Point]) -> list[list[float]]:
    return [[getattr(p, name) for p in points] for name in ("flops", "parameters", "tokens", "loss")]


def sections(analysis: Scaling) -> list[Markup | Table]:
    """The charts and tables of a ladder, for a report."""
    convention = "all parameters" if analysis.convention == "all" else "parameters without embeddings"
    drawn = [isoflop(analysis), predicted(analysis)]
    notes = tuple((text,) for text in (*analysis.faults, *(f"left out: {run}" for run in analysis.lost)))
    tables = [
        Table(
            "The law",
            ("", "value", "95% interval"),
            tuple((name, *_cells(estimate)) for name, estimate in _estimates(analysis)),
            f"L(N, D) = E + A/N^alpha + B/D^beta with N {convention}, fitted to all budgets but the largest by "
            "approach 3 of arXiv:2203.15556; approach 2 finds the best size of each budget by a parabola.",
        ),
        Table(
            "The largest budget, held out",
            ("arm", "N", "tokens", "predicted", "95% interval", "found", "error", "inside"),
            tuple(_scored(p) for p in analysis.predictions),
            " ".join(["The law was fitted without these runs.", *_best_size(analysis)]),
        ),
        Table("What cannot be told", ("",), notes),
    ]
    charts = section("Scaling", tag("div", *drawn, class_="charts") if any(drawn) else "")
    return [charts, *(one for one in tables if one.rows)]


def record(analysis: Scaling) -> str:
    """A row an arm: its budget, N, D and loss; of those held out, what was predicted, and between what."""
    said = {p.point.arm: p.predicted for p in analysis.predictions}
    rows = []
    for p in analysis.points:
        found = said.get(p.arm, Estimate(math.nan))
        heldout = "yes" if p.heldout else "no"
        numbers = float(p.flops), p.parameters, p.tokens, p.seeds, float(p.loss)
        rows.append([p.arm, *numbers, heldout, found.value, found.low, found.high])
    names = ("arm", "flops", "parameters", "tokens", "seeds", "mean", "heldout", "predicted", "low", "high")
    return csv_text(names, rows)


def _best_size(analysis: Scaling) -> Iterable[str]:
    said, found = analysis.best_size
    if not math.isnan(said + found):
        yield f"Approach 2 predicted a best size of {human(said)} parameters; found were {human(found)}."


def _estimates(analysis: Scaling) -> Iterable[tuple[str, Estimate]]:
    if law := analysis.law:
        for name in ("E", "A", "B", "alpha", "beta"):
            yield name, law.estimate(name)
        yield "N_best ~ C^a, approach 3", law.estimate("parameters_exponent")
    if analysis.optimum:
        yield "N_best ~ C^a, approach 2", analysis.optimum.parameters_exponent
        yield "D_best ~ C^b, approach 2", analysis.optimum.tokens_exponent


def _cells(estimate: Estimate) -> tuple[str, str]:
    low, high = estimate.low, estimate.high
    return f"{estimate.value:.4g}", NONE if math.isnan(low) else f"{low:.4g} to {high:.4g}"


def _scored(p: Prediction) -> tuple[str, ...]:
    value, interval = _cells(p.predicted)
    found = f"{p.point.loss:.4g}"
    counts = f"{p.point.parameters:,}", f"{p.point.tokens:,}"
    return (
        p.point.arm,
        *counts,
        value,
        interval,
        found,
        f"{p.error:+.2%}".replace("-", "−"),
        "yes" if p.inside else "no",
    )


# ---------------------------------------------------------------- charts


def isoflop(analysis: Scaling) -> Markup:
    """Loss over size, a curve a budget: approach 2's parabolas, the minima marked; the held-out budget in grey."""
    budgets = sorted({p.flops for p in analysis.points})
    if not budgets:
        return Markup("")
    valleys = {
        flops: fit.valley(flops, *_columns([p for p in analysis.points if p.flops == flops])[1:]) for flops in budgets
    }
    held = {p.flops for p in analysis.points if p.heldout}
    drawing, axes = _axes("isoflop", HALF)
    for i, flops in enumerate(budgets):
        points = sorted((p.parameters, p.loss) for p in analysis.points if p.flops == flops)
        colour = MUTED if flops in held else _series(i)
        sizes, losses = zip(*points, strict=True)
        axes.plot(sizes, losses, "o", color=colour, markersize=3.5, label=human(flops))
        _draw_valley(axes, valleys[flops], sizes, colour)
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    _legend(axes, len(budgets))
    said = f"{named(analysis.measure)} over size, a curve a budget of FLOPs; crosses: best sizes"
    return figure("Equal FLOPs", _svg(drawing, "isoflop"), said + ("; grey: held out" if held else ""))


def _draw_valley(axes: Any, valley: Valley, sizes: Sequence[float], colour: str) -> None:
    if any(map(math.isnan, valley.parabola)):
        return
    x = np.geomspace(min(sizes), max(sizes), FINE)
    axes.plot(x, valley(x), color=colour, linewidth=1.2, alpha=0.8)
    if not valley.fault:
        axes.plot([valley.parameters], [valley.loss], "x", color=colour, markersize=6, markeredgewidth=1.6)


def predicted(analysis: Scaling) -> Markup:
    """What the law says over what was found: faint where it was fitted, with intervals where it was not."""
    if analysis.law is None:
        return Markup("")
    drawing, axes = _axes("predicted", HALF)
    seen = [p for p in analysis.points if not p.heldout]
    values = [p.loss for p in analysis.points]
    axes.plot([min(values), max(values)], [min(values), max(values)], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    said = [float(analysis.law.law.loss(p.parameters, p.tokens)) for p in seen]
    axes.plot([p.loss for p in seen], said, "o", color=MUTED, markersize=3.5, alpha=0.6, label="fitted")
    for i, one in enumerate(analysis.predictions):
        estimate = one.predicted
        low, high = estimate.value - estimate.low, estimate.high - estimate.value
        axes.errorbar(
            [one.point.loss],
            [estimate.value],
            [[max(low, 0.0)], [max(high, 0.0)]],
            fmt="o",
            color=_series(0),
            markersize=4,
            linewidth=1.4,
            label="predicted" if i == 0 else "_",
        )
    axes.set_xlabel("found")
    _legend(axes, 1 + bool(analysis.predictions))
    return figure("Predicted and found", _svg(drawing, "predicted"), f"{named(analysis.measure)}, 95% intervals")
