"""Rewards over the KL divergence: each line begins at the start, and is told by where the true reward was highest."""

import math

import pytest

from lm.page.tables import markdown
from lm.study.overoptimization import POINTS, Overoptimization, Point
from lm.study.trial import FINISHED, MISSING, Result
from tests.study.results import BASE

NAMES = "judged/prompts/kl", "judged/prompts/scorer", "judged/prompts/rule"


def study() -> Overoptimization:
    arms = {"start": {}, "best_of_16": dict(steps=201), "best_of_4": dict(steps=202), "ppo": dict(steps=203)}
    kl, proxy, true = NAMES
    return Overoptimization(BASE, arms, seeds=(0, 1), match="steps", measure=true, proxy=proxy, kl=kl)


FOUND = {  # arm -> (step, kl, proxy, true), the same at both seeds but for the proxy, whose mean they are
    "start": [(1, 0.0, 1.0, -0.5)],
    "best_of_16": [(1, 1.84, 4.0, 0.9)],
    "best_of_4": [(1, 0.64, 3.0, 0.5)],
    "ppo": [(10, 1.0, 3.5, 1.5), (20, 9.0, 6.0, -2.5)],
}


def results() -> list[Result]:
    found = []
    for trial in study().trials():
        apart = (-0.25, 0.25)[trial.seed]
        evaluations = tuple(
            (step, dict(zip(NAMES, (kl, proxy + apart, true), strict=True)))
            for step, kl, proxy, true in FOUND[trial.arm]
        )
        found.append(Result(trial, FINISHED, "", evaluations[-1][1], (), evaluations))
    return found


def test_lines_begin_at_the_start_and_rewards_are_less_its_own() -> None:
    paths = study().paths(results())
    assert list(paths) == [POINTS, "ppo"]
    assert paths[POINTS] == [
        Point("start", 1, 0.0, 0.0, 0.0),
        Point("best_of_4", 1, 0.64, 2.0, 1.0),
        Point("best_of_16", 1, 1.84, 3.0, 1.4),
    ]
    assert [(p.step, p.kl, p.proxy, p.true) for p in paths["ppo"]] == [
        (1, 0.0, 0.0, 0.0),
        (10, 1.0, 2.5, 2.0),
        (20, 9.0, 5.0, -2.0),
    ]


def test_the_report_tells_where_it_turns() -> None:
    found = study().findings(results())
    assert found.headline.endswith(
        "ppo: the true reward is highest, +2.00, at a KL of 1 nats; at 9 nats it is −2.00, by the proxy +5.00."
    )
    drawn, table = found.parts
    assert isinstance(drawn, str) and "√KL" in drawn and "| ppo | ppo | 20 | 9.00 | +5.00 | −2.00 |" in markdown(table)


def test_what_has_not_finished_is_no_point() -> None:
    missing = [r if r.trial.arm != "ppo" else Result(r.trial, MISSING) for r in results()]
    assert list(study().paths(missing)) == [POINTS]
    assert study().paths([]) == {} and not study().findings([]).headline
    assert math.isclose(study().paths(results())["ppo"][-1].kl, 9.0)


@pytest.mark.parametrize("field", ["proxy", "kl"])
def test_measures_are_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}='': expected a measure of an evaluation"):
        Overoptimization(BASE, {"start": {}}, **{**dict(proxy="a/b", kl="a/c"), field: ""})
