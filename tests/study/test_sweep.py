"""Sweeps: the arms follow from the seed and from what came of those before, however often they were killed."""

import csv
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.experiment import Experiment
from lm.page.words import probability
from lm.run.outcome import FAILED, PRUNED
from lm.study import report, runner
from lm.study.pruning import MedianPruner
from lm.study.space import Choice, Integer, LogUniform, Uniform, With
from lm.study.statistics import pairwise, student
from lm.study.sweep import JOURNAL, METHODS, Sweep
from lm.study.trial import FINISHED, Result
from lm.train.optim import AdamW, Lion
from tests.page.test_run_report import parsed
from tests.study.results import Pretend
from tests.tiny import experiment

BASE = experiment(Path("texts")).replace(steps=20)
LR = "optimizer.learning_rate"
SPACE = {LR: LogUniform(1e-4, 1e-1, points=4), "model.dropout": Uniform(0.0, 0.5, points=3)}
NOTE = {"study": "tests:sweep", "command": "lm study tests:sweep"}
FILES = ("results.csv", "differences.csv", "settings.csv", "report.md", "report.tex", "report.html")


def loss(e: Experiment) -> float:
    """Least at a rate of 3e-3 and without dropout; the seed moves it a little."""
    return 2 + abs(math.log10(e.optimizer.learning_rate / 3e-3)) + e.model.dropout + 0.01 * e.seed


def sweep(method: str = "tpe", **others: Any) -> Sweep:
    return Sweep(BASE, SPACE, method, **{"count": 12, "at_once": 4, **others})


def done(study: Sweep, folder: Path, executor: Pretend) -> list[Result]:
    study = study.at(folder)
    found = runner.run(study, folder, NOTE, executor, share=False)
    report.write_study(folder, study, found, NOTE)
    return found


def records(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES[:3]]


@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_from_its_arms_to_its_report(method: str, tmp_path: Path) -> None:
    found = done(sweep(method, seeds=range(2)), tmp_path, Pretend(loss))
    assert len(found) == 24 and all(r.finished for r in found)
    settings = list(csv.DictReader((tmp_path / "settings.csv").read_text().splitlines()))
    means = [
        loss(BASE.replace(optimizer={"learning_rate": float(s[LR])}, model={"dropout": float(s["model.dropout"])}))
        for s in settings
    ]
    assert [float(s["mean"]) for s in settings] == pytest.approx([m + 0.005 for m in means])
    page = parsed(tmp_path / "report.html").text
    first = settings[int(np.argmin(means))]["arm"]
    assert f"Of 12 arms, {first} has the lowest loss" in page and "95% interval" in page
    for part in ("All settings", LR, "model.dropout", "Which settings matter", "Arms, the best first"):
        assert part in page
    assert "Arms, the best first" in (tmp_path / "report.md").read_text() and all(
        (tmp_path / f).exists() for f in FILES
    )


def test_intervals_and_p_are_corrected_for_the_choice_of_the_best(tmp_path: Path) -> None:
    """In the headline, the table and settings.csv alike."""

    def noisy(e: Experiment) -> float:
        drawn = np.random.default_rng([e.seed, int(e.name)])
        return 2.0 + (0.5 if e.name == "003" else 0.0) + 0.01 * drawn.normal()

    study = sweep("random", seeds=range(5), count=6)
    found = done(study, tmp_path, Pretend(noisy))
    analysis = study.analyse(found)
    first = analysis.arms[0]
    interval = student(list(first.values.values()), 6)
    told = f"(95% interval {interval.span()}, 5 seeds, corrected for the choice among 6 arms)"
    p = dict(zip([one.arm for one in analysis.arms], pairwise(analysis.arms)[0], strict=True))
    assert p["003"] < 0.05 and set(analysis.tied) == {arm for arm in p if arm not in ("003", first.arm)}
    assert told in analysis.headline and told in (tmp_path / "report.md").read_text()
    for row in csv.DictReader((tmp_path / "settings.csv").read_text().splitlines()):
        own = student([r.measures["loss"] for r in found if r.trial.arm == row["arm"]], 6)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((own.low, own.high))
        assert float(row["p_holm"]) == pytest.approx(p[row["arm"]], nan_ok=True)
        assert f"{own.span()}{probability(p[row['arm']])}" in parsed(tmp_path / "report.html").text


def test_along_each_range_a_latin_hypercube_has_an_arm_in_each_part() -> None:
    drawn = sweep("latin").arms().values()
    for name, one in SPACE.items():
        assert sorted(int(one.place(draw[name]) * 12) for draw in drawn) == list(range(12))


FEW = {"model.layers": Integer(1, 2), "model.tied": Choice(True, False)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [3, 6])
def test_no_arm_is_run_twice(method: str, count: int, tmp_path: Path) -> None:
    """Of a space of four: three different ones, or all, and a word where that is fewer than were asked for."""
    study = Sweep(BASE, FEW, method, count=count, seeds=range(2))
    found = done(study, tmp_path, Pretend(lambda e: 2 + e.model.layers + 0.1 * e.model.tied + 0.01 * e.seed))
    arms = {(r.trial.experiment.model.layers, r.trial.experiment.model.tied) for r in found}
    assert len(found) == 2 * len(arms) and len(arms) == (4 if method == "grid" else min(count, 4))
    told = "The space has 4 different arms, fewer than count=6."
    assert (told in (tmp_path / "report.md").read_text()) == (count == 6 and method != "grid")


def test_what_is_drawn_again_is_drawn_anew_and_the_others_keep_their_names() -> None:
    one = Integer(1, 5)
    before = {f"{i:03d}": {"model.layers": one.at(np.random.default_rng([2, i]).random())} for i in range(40)}
    study = Sweep(BASE, {"model.layers": one}, "random", count=4, search_seed=2)
    assert list(study.arms()) == ["000", "001", "004", "007"] and study.arms().items() <= before.items()
    assert study.remark == "Of 4 draws, 2 came again: others took their place."
    assert Sweep(BASE, SPACE, "random", count=12).remark == ""


def test_tpe_looks_where_it_was_good(tmp_path: Path) -> None:
    study = sweep(count=24, at_once=8)
    results = runner.run(study, tmp_path, NOTE, Pretend(loss), share=False)
    found = {r.trial.arm: r.measures["loss"] for r in results}
    later = [found[f"{i:03d}"] for i in range(8, 24)]
    assert np.median(later) < np.median([found[f"{i:03d}"] for i in range(8)]) - 0.3


@pytest.mark.parametrize("change", [{}, {"prune": True}, {"method": "random", "prune": True}], ids=str)
def test_killed_at_any_run_and_gone_on_with(change: dict[str, Any], tmp_path: Path) -> None:
    """The same arms, and records of the same bytes, whoever looked when."""
    study = sweep(**change)
    done(study, tmp_path / "alone", Pretend(loss, patience=True))
    killed = tmp_path / "killed"
    for die in (0, 1, 3, 2, 5):
        with pytest.raises(KeyboardInterrupt):
            done(study, killed, Pretend(loss, patience=die % 2 == 0, die=die))
    done(study, killed, Pretend(loss))
    assert records(killed) == records(tmp_path / "alone")
    statuses = [row["status"] for row in csv.DictReader((killed / "results.csv").read_text().splitlines())]
    assert set(statuses) == ({FINISHED, PRUNED} if study.prune else {FINISHED})
    if study.method == "tpe":
        assert (killed / JOURNAL).exists()


def test_a_run_that_falls_behind_is_told_to_stop(tmp_path: Path) -> None:
    executor = Pretend(loss, patience=True)
    found = done(sweep("random", prune=True), tmp_path, executor)
    stopped = [r for r in found if r.status == PRUNED]
    assert stopped and all(r.evaluations[-1][0] < 20 and "worse than half" in r.reason for r in stopped)
    ended = [(r.trial.folder(tmp_path) / "metrics.jsonl").read_text().count("\n") for r in stopped]
    assert max(ended) < 4  # they did not go on
    assert min(int(r.trial.arm) for r in stopped) >= 4  # there is nothing to compare the first batch with
    assert "stopped after step" in (tmp_path / "report.md").read_text()


curves = st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=5, max_size=9)


@settings(max_examples=60, deadline=None)
@given(curves=curves, sign=st.sampled_from([-1, 1]))
def test_the_median_rule_is_optuna_s(curves: list[list[float]], sign: int) -> None:
    """The last curve against the others, evaluated every second step of 12."""
    import optuna

    *others, ours = [[(2 * i + 2, value) for i, value in enumerate(curve)] for curve in curves]
    mine, study = MedianPruner(sign), optuna.create_study(direction="maximize" if sign > 0 else "minimize")
    for curve in others:
        mine.add(curve)
        study.add_trial(optuna.trial.create_trial(value=curve[-1][1], intermediate_values=dict(curve)))
    theirs = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3)
    wanted = None
    for i, (step, _) in enumerate(ours):
        way = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values=dict(ours[: i + 1]))
        if step < 12 and theirs.prune(study, way):
            wanted = step
            break
    assert mine.stops_at(ours, 12) == wanted
    few = MedianPruner(sign)
    for curve in others[:3]:
        few.add(curve)
    assert few.stops_at(ours, 12) is None  # there is too little to compare with


WITHOUT_OPTUNA = """
import sys
from pathlib import Path

sys.modules["optuna"] = None  # what is not installed
from tests.study.test_sweep import METHODS, Pretend, done, loss, sweep

for method in METHODS[:3]:
    done(sweep(method, prune=method == "random"), Path(method), Pretend(loss, patience=True))
try:
    sweep("tpe").trials()
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_optuna_all_but_tpe_is_there(tmp_path: Path) -> None:
    command, here = [sys.executable, "-c", WITHOUT_OPTUNA], str(Path(__file__).parents[2])
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": here}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == 'TPE and PED-ANOVA need optuna: pip install -e ".[sweep]"'
    for method in METHODS[:3]:
        page = parsed(tmp_path / method / "report.html").text
        assert "Which settings matterNot weighed: TPE and PED-ANOVA need optuna" in page and "All settings" in page
    assert PRUNED in (tmp_path / "random" / "results.csv").read_text()


def test_an_arm_that_fails_does_not_end_the_search(tmp_path: Path) -> None:
    def some(e: Experiment) -> float:
        return math.nan if e.optimizer.learning_rate > 2e-2 else loss(e)

    found = done(sweep(), tmp_path, Pretend(some))
    assert len(found) == 12 and {r.status for r in found} == {FAILED, FINISHED}


def test_options_bring_settings_of_their_own(tmp_path: Path) -> None:
    optimizers = Choice(With(AdamW(), {LR: LogUniform(1e-3, 1e-1), "optimizer.b2": Uniform(0.9, 0.99)}), Lion())
    found = done(Sweep(BASE, {"optimizer": optimizers}, "tpe", count=10), tmp_path, Pretend(loss))
    kinds = {r.trial.arm: type(r.trial.experiment.optimizer).__name__ for r in found}
    rows = {row["arm"]: row for row in csv.DictReader((tmp_path / "settings.csv").read_text().splitlines())}
    assert set(kinds.values()) == {"AdamW", "Lion"}
    assert all((rows[arm]["optimizer.b2"] == "") == (kind == "Lion") for arm, kind in kinds.items())


def test_a_folder_of_another_space_is_refused(tmp_path: Path) -> None:
    done(sweep(), tmp_path, Pretend(loss))
    other = replace(sweep(), space={LR: LogUniform(1e-9, 1e-8)}).at(tmp_path)
    with pytest.raises(ValueError, match="is of another space: .*choose another --workdir"):
        other.trials()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(method="tree"), "method='tree': .*known: grid, random, latin, tpe"),
        (dict(count=0), "count=0: expected a number of arms"),
        (dict(seeds=()), "expected different numbers"),
        (dict(measure="lss"), "measure='lss': expected one of loss"),
        (dict(method="grid", space={LR: LogUniform(1e-3, 1e-1)}), "a grid needs to know how many"),
        (dict(space={"steps.x": Uniform(0, 1)}), "has no fields"),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(sweep(), **change)


def test_an_arm_that_cannot_be_built_is_named() -> None:
    with pytest.raises(ValueError, match=r"arm '000' \(ema=.*\): ema=.*expected at least 0 and less than 1"):
        Sweep(BASE, {"ema": Uniform(1.5, 2.0)}).trials()
