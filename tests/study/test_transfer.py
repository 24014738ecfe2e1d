"""Learning rates over widths: the best one is found, and so is whether it stands still, moves, or cannot be told."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model.parametrisation import MuP, Parametrisation
from lm.run.outcome import DIVERGED
from lm.study.optimum import MOVES, TRANSFERS, lowest
from lm.study.report import Findings, write_study
from lm.study.runner import groups
from lm.study.transfer import Transfer, with_rate
from lm.study.trial import FINISHED, MISSING, Result
from lm.study.verdicts import UNKNOWN
from lm.train.optim import AdamW, Muon, Optimizer
from tests.tiny import experiment

WIDTHS, RATES = (16, 32, 64), tuple(1e-3 * 2**k for k in range(7))
BASE = experiment(Path("texts")).replace(model=dict(parametrisation=MuP(16)))
STUDY = Transfer(BASE, WIDTHS, RATES, seeds=range(3))


def results(
    study: Transfer, exponent: dict[str, float], noise: float = 0.0, best: float = 8e-3, beyond: float = math.inf
) -> list[Result]:
    """Of every trial a loss with the best rate at best x (width / 16)^exponent, which a seed moves by a factor of
    e^noise at each width; rates above `beyond` diverge."""
    random, found = np.random.default_rng(0), []
    moved = {(w, seed): noise * random.standard_normal() for w in study.widths for seed in study.seeds}
    for trial, arm in zip(study.trials(), study.arms * len(tuple(study.seeds)), strict=True):
        assert trial.arm == arm.name
        at = math.log(best * (arm.width / 16) ** exponent[arm.rule]) + moved[arm.width, trial.seed]
        loss = 3 - 0.1 * math.log2(arm.width) + 0.2 * (math.log(arm.rate) - at) ** 2 + 0.01 * trial.seed
        ended = arm.rate <= beyond
        found.append(Result(trial, FINISHED, measures={"loss": loss}) if ended else Result(trial, DIVERGED, "nan"))
    return found


EXPONENTS = {"MuP": 0.0, "standard": -0.7}


def test_its_trials_share_a_program_a_width() -> None:
    trials = STUDY.trials()
    assert len(trials) == len({(t.arm, t.seed) for t in trials}) == 2 * 3 * 7 * 3
    small = replace(STUDY, rates=RATES[:5])
    programs = groups(small.trials())
    assert [len(group) for group in programs] == [15] * 6  # five rates at three seeds
    for group in programs:
        assert len({t.experiment.model for t in group}) == 1
        assert {t.experiment.optimizer.learning_rate for t in group} == set(RATES[:5])
    widest = trials[20].experiment.model
    assert (widest.width, widest.ffn.mlp, widest.attention.heads, widest.parametrisation) == (64, 128, 8, MuP(16))
    assert trials[-1].experiment.model.parametrisation == Parametrisation()
    assert len(replace(STUDY, twin=False).trials()) == len(trials) / 2


def test_several_rates_change_together() -> None:
    found = with_rate(Muon(learning_rate=0.01, adam_learning_rate=0.006), 0.02)
    assert (found.learning_rate, found.adam_learning_rate) == (0.02, pytest.approx(0.012))  # type: ignore[attr-defined]
    assert with_rate(AdamW(weight_decay=0.3), 1e-2) == AdamW(learning_rate=1e-2, weight_decay=0.3)


@settings(deadline=None)
@given(best=st.floats(1.1e-3, 6e-2), slope=st.floats(0.01, 10))
def test_the_best_rate_is_between_those_tried(best: float, slope: float) -> None:
    losses = [slope * (math.log(rate) - math.log(best)) ** 2 for rate in RATES]
    i = int(np.argmin(losses))
    rate, ended = lowest(RATES, losses)
    if ended:
        assert i in (0, 6) and rate == RATES[i]
    else:
        assert rate == pytest.approx(best, rel=1e-4)


def test_where_no_curve_goes_the_best_of_those_tried() -> None:
    assert lowest(RATES, [3.0, 2.0, 1.0, math.nan, math.nan, math.nan, math.nan]) == (RATES[2], False)
    assert lowest(RATES, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == (RATES[0], True)


def test_it_transfers_under_mup_and_moves_without() -> None:
    found = results(STUDY, EXPONENTS, noise=0.03)
    mup, standard = STUDY.analyse(found)
    assert (mup.verdict, standard.verdict) == (TRANSFERS, MOVES)
    assert 0 in mup.exponent and -0.7 in standard.exponent
    assert mup.exponent.value == pytest.approx(0, abs=0.1) and standard.exponent.value == pytest.approx(-0.7, abs=0.1)
    assert [curve.width for curve in mup.curves] == [16, 32, 64]
    assert mup.curves[0].rate.value == pytest.approx(8e-3, rel=0.1)
    said = STUDY.findings(found).headline
    assert said.startswith("In MuP, the best learning rate transfers from width 16 to 64: as width^")
    assert "In the standard parametrisation, the best learning rate moves" in said and "3 seeds)" in said


def test_what_cannot_be_told() -> None:
    noisy = STUDY.analyse(results(STUDY, EXPONENTS, noise=1.0))[0]
    assert noisy.verdict == UNKNOWN and "whether the best learning rate transfers, the data cannot" in noisy.headline
    alone = replace(STUDY, seeds=[0])
    one = alone.analyse(results(alone, EXPONENTS))[1]
    assert one.verdict == UNKNOWN and math.isnan(one.exponent.low) and "one seed: no interval" in one.headline
    ended = STUDY.analyse(results(STUDY, {"MuP": 0.01, "standard": -2.0}, noise=0.01, best=1.05e-3))[0]
    assert ended.verdict == UNKNOWN and ended.ended == [16, 32, 64]
    assert "At width 16, 32 and 64 it is at an end of the rates tried" in ended.headline
    waiting = [Result(trial, MISSING) for trial in STUDY.trials()]
    assert STUDY.findings(waiting) == Findings("No run has finished yet.")


def test_a_rate_at_which_all_diverge_is_above_the_best() -> None:
    """It bounds the best rate from above: that is then not at an end of those tried."""
    mup = STUDY.analyse(results(STUDY, EXPONENTS, noise=0.01, beyond=8e-3))[0]
    assert mup.ended == [] and all(0.004 < curve.rate.value < 0.0081 for curve in mup.curves)
    assert mup.curves[0].rates[-1] == 8e-3


def test_its_report(tmp_path: Path) -> None:
    found = results(STUDY, EXPONENTS, noise=0.03, beyond=40e-3)
    page = write_study(tmp_path, STUDY, found, dict(study="experiments.mup:rates")).read_text()
    assert "Does the best learning rate transfer?" in page and "at that of 16" in page and ">transfers<" in page
    charts = page[page.index("Learning rates") :]
    assert charts.index("The standard parametrisation") > charts.index('aria-label="MuP"') and page.count("<svg") >= 2
    written = (tmp_path / "report.md").read_text()
    assert "| standard | moves | −0." in written and "Best rates" in (tmp_path / "report.tex").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(widths=(64,)), r"widths=\(64,\): expected at least 2 above 0, rising"),
        (dict(rates=(2e-3, 1e-3, 4e-3)), "rates=.*: expected at least 3 above 0, rising"),
        (dict(rates=(1e-3, 1.0000001e-3, 4e-3)), "differ in their first six digits"),
        (dict(rates=(1e-3, 2e-3, math.inf)), "rates"),
        (dict(seeds=[]), r"seeds=\(\)"),
        (dict(seeds=[1, 1]), "expected different numbers"),
        (dict(tolerance=0.0), "tolerance=0.0"),
        (dict(widths=(16, 20)), "width=20: attention.heads would be 2.5, from 2 at 16"),
        (dict(base=BASE.replace(optimizer=Optimizer(learning_rate=0.0, clip=0.0))), "optimizer.learning_rate=0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transfer(**{**dict(base=BASE, widths=WIDTHS, rates=RATES), **options})
