"""Ladders: budgets are met, the law is found again inside its intervals, and its prediction is scored."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.scaling_law import inside, ladder
from lm.experiment import Experiment
from lm.model import count
from lm.study import fit, report, runner
from lm.study.fit import Law
from lm.study.scaling import Ladder, body
from lm.study.trial import training_flops
from tests.page.test_run_report import parsed
from tests.study.results import Pretend
from tests.tiny import experiment

BASE = experiment(Path("texts"))
SHAPES = tuple(dict(model=dict(width=width, ffn=dict(mlp=2 * width))) for width in (8, 12, 16, 24, 32))
LADDER = Ladder(BASE, compute=(2e8, 4e8, 8e8, 1.6e9), shapes=SHAPES, bootstrap=100)
TRUE = Law(E=1.5, A=20.0, B=60.0, alpha=0.35, beta=0.4)
NOTE = {"study": "tests:ladder", "command": "lm study tests:ladder"}


def loss(e: Experiment) -> float:
    """TRUE's, and a noise of 0.3% that follows from the arm."""
    noise = np.random.default_rng([e.steps, e.model.width, e.seed]).normal(0, 3e-3)
    return float(TRUE.loss(count.parameters(e.model), e.steps * e.batch_tokens) * math.exp(noise))


def test_every_shape_gets_every_budget() -> None:
    trials = LADDER.trials()
    assert len(trials) == 20 and len({t.arm for t in trials}) == 20
    for trial in trials:
        flops = LADDER.arms[trial.arm][0]
        assert abs(training_flops(trial.experiment) / flops - 1) <= 0.5 / trial.experiment.steps
    assert trials[0].arm == "2e8-width8-mlp16"


def test_a_ladder_from_its_runs_to_its_score(tmp_path: Path) -> None:
    study = replace(LADDER, seeds=range(2))
    found = runner.run(study, tmp_path, NOTE, Pretend(loss), share=False)
    report.write_study(tmp_path, study, found, NOTE)
    page = parsed(tmp_path / "report.html").text
    for part in (
        "Fitted to 3 budgets, the law predicted the 5 runs of 2 times the largest",
        "Iso-FLOP profiles",
        "The law",
    ):
        assert part in page
    assert "The largest budget, held out" in (tmp_path / "report.md").read_text()
    assert "Predicted and measured" in page and "The law" in (tmp_path / "report.tex").read_text()
    rows = [r for r in csv.DictReader((tmp_path / "scaling.csv").read_text().splitlines()) if r["heldout"] == "yes"]
    inside = [float(r["low"]) <= float(r["mean"]) <= float(r["high"]) for r in rows]
    assert len(rows) == 5 and sum(inside) >= 4
    assert all(abs(float(r["predicted"]) / float(r["mean"]) - 1) < 0.02 for r in rows)


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    """Too few budgets, a run that failed, and nothing at all."""
    study = replace(LADDER, compute=(2e8, 4e8))
    found = runner.run(
        study, tmp_path, NOTE, Pretend(lambda e: math.nan if e.model.width == 8 else loss(e)), share=False
    )
    own = study.findings(found)
    assert own.headline.startswith("The law cannot be scored: 4 runs to fit L(N, D) with: its 5 coefficients need")
    assert any("left out: 2e8-width8-mlp16, seed 0: failed" in str(part) for part in own.parts)
    assert study.findings([]).headline == "No conclusion yet: no run has finished."


def test_known_coefficients_are_found_again_inside_the_intervals() -> None:
    """How often over many draws: `python -m benchmarks.scaling_law`."""
    options: Any = SimpleNamespace(budgets=4, sizes=6, bootstrap=100)
    found = [inside(draw, options) for draw in range(6)]
    for name in found[0]:
        assert sum(one[name] for one in found) >= 4, name  # each is inside 95 times of 100


def test_without_noise_the_law_is_exact() -> None:
    true = Law(2.0, 300.0, 900.0, 0.3, 0.35)
    _, sizes, tokens = ladder(4, 6)
    found = fit.fit(sizes, tokens, true.loss(sizes, tokens), bootstrap=100).law
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=2e-3)


def test_parameters_without_embeddings() -> None:
    model = BASE.model
    assert body(model) == count.parameters(model) - 2 * model.vocab * model.width


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(compute=()), "expected budgets in model FLOPs"),
        (dict(compute=(1e9, -1.0)), "expected budgets in model FLOPs, above 0"),
        (dict(shapes=()), "expected at least one"),
        (dict(shapes=(dict(steps=3),)), "a shape sets steps: steps follow from the budget"),
        (dict(shapes=(SHAPES[0], SHAPES[0])), "two arms are named"),
        (dict(seeds=(1, 1)), "expected different numbers"),
        (dict(measure="accuracy"), "measure='accuracy': expected loss or bits_per_byte"),
        (dict(parameters="most"), "parameters='most': .*known: all, body"),
        (dict(compute=(10.0,)), "arm '1e1-width8-mlp16': a budget of 10 FLOPs is too small for one step of"),
        (dict(shapes=(dict(model=dict(widht=8)),)), "ModelConfig has no field 'widht': did you mean width"),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(LADDER, **change).trials()
