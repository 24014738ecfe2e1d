"""Results of runs that never were: tests of statistics and reports need numbers, not training."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lm.experiment import Experiment
from lm.run.folder import write_json
from lm.run.outcome import FAILED, PRUNED, STOP, write_outcome
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


class Pretend:
    """An executor whose runs reach the `loss` of their experiment at once, or, with `patience`, an evaluation at a time
    and only while the study does not ask them to end. It is killed before the run of number `die`. Runs leave an empty
    report, so that the study draws none: test_runner.py looks at those."""

    def __init__(self, loss: Callable[[Experiment], float], patience: bool = False, die: int = -1):
        self.loss, self.patience, self.die = loss, patience, die
        self.began: list[str] = []

    def __call__(self, groups: Sequence[Sequence[Trial]], study: Path, watch: Callable[[], object]) -> None:
        for trial in (trial for group in groups for trial in group):
            if len(self.began) == self.die:
                raise KeyboardInterrupt
            self.began.append(f"{trial.arm}/{trial.seed}")
            self._run(trial, trial.folder(study), watch)

    def _run(self, trial: Trial, folder: Path, watch: Callable[[], object]) -> None:
        reached, steps = self.loss(trial.experiment), trial.experiment.steps
        if not math.isfinite(reached):
            return write_outcome(folder, FAILED, "it was told to")
        lines = ""
        for share in (0.25, 0.5, 0.75, 1.0):
            line = {"step": round(share * steps), "loss": reached / share, "eval/loss": reached / share}
            lines += json.dumps(line) + "\n"
            if self.patience or share == 1:
                (folder / "metrics.jsonl").write_text(lines)
                watch()
            if (folder / STOP).exists():
                return write_outcome(folder, PRUNED, "stopped by the study")
        write_json(folder / "about.json", {"finished": "now", "seconds": 1.0})
        return (folder / "report.html").touch()
