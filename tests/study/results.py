"""Results of runs that never were: tests of statistics and reports need numbers, not training."""

from collections.abc import Mapping
from pathlib import Path

from lm.study.trial import FINISHED, Result, Trial
from tests.tiny import experiment

BASE = experiment(Path("texts")).replace(steps=200)


def run(arm: str, seed: int, loss: float, status: str = FINISHED, reason: str = "") -> Result:
    """One run with a loss, and measures of two sources that follow from it."""
    trial = Trial(arm, seed, BASE.replace(seed=seed))
    if status != FINISHED:
        return Result(trial, status, reason, curve=((1, 5.0), (50, loss)))

    def measures(loss: float) -> dict[str, float]:
        return {
            "loss": loss,
            **{"sums/loss": loss - 0.1, "words/loss": loss + 0.1},
            **{"sums/accuracy": 1 / (1 + loss * loss), "words/accuracy": 0.5 / (1 + loss * loss)},
        }

    curve = tuple((step, loss + 3 / step) for step in range(1, 201, 10))
    evaluations = tuple((step, measures(loss + 1 / step)) for step in (50, 100, 150)) + ((200, measures(loss)),)
    return Result(trial, FINISHED, "", evaluations[-1][1], curve, evaluations, seconds=30.0 + seed)


def runs(arms: Mapping[str, Mapping[int, float]]) -> list[Result]:
    """arm -> seed -> loss, as finished runs."""
    return [run(arm, seed, loss) for arm, losses in arms.items() for seed, loss in losses.items()]
