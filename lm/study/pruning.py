"""What came of an arm of a sweep, as the search takes it; and which runs are stopped early, by the median rule."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm.run.outcome import FAILED
from lm.study.trial import FINISHED, MISSING, STOPPED, Result

WARMUP = 0.25  # of a run's steps: in these none is stopped
STARTUP = 4  # runs that have finished, below which none is stopped
Evaluations = Sequence[tuple[int, float]]  # (step, value)


@dataclass(frozen=True)
class Outcome:
    """What came of an arm: a `value`, nan where it did not come to its end; then it counts as worse than all that did,
    or not at all where it `failed`. `evaluations` are those up to where it was stopped."""

    value: float = math.nan
    evaluations: tuple[tuple[int, float], ...] = ()
    failed: bool = False


class MedianPruner:
    """Stops a run whose best evaluation so far is worse than the median, at the same step, of the runs that finished
    before it (the rule of Optuna's class of this name). `sign`: -1 where less is better, 1 where more is."""

    def __init__(self, sign: int):
        self.sign = sign
        self.finished: list[dict[int, float]] = []

    def add(self, evaluations: Evaluations) -> None:
        """A run that has finished, to compare with."""
        self.finished.append(dict(evaluations))

    def stops_at(self, evaluations: Evaluations, steps: int) -> int | None:
        """The evaluation at which a run of so many steps is stopped, if any."""
        if len(self.finished) < STARTUP:
            return None
        best = -math.inf
        for step, value in evaluations:
            best = max(best, self.sign * value)
            others = [self.sign * run[step] for run in self.finished if step in run]
            if WARMUP * steps <= step < steps and others and best < np.median(others):
                return step
        return None


def evaluations(result: Result, measure: str) -> list[tuple[int, float]]:
    """The run's finite evaluations by `measure`, on the way and at the end."""
    known = [(step, measures[measure]) for step, measures in result.evaluations if measure in measures]
    return [(step, value) for step, value in known if math.isfinite(value)]


def pruned(results: Sequence[Result], measure: str, sign: int, at_once: int) -> dict[tuple[str, int], int]:
    """(arm, seed) -> the step at which that run is stopped, of those that are. Arms, which are numbered, are compared
    with those of earlier batches of `at_once` alone, seed by seed."""

    def batch_of(result: Result) -> int:
        return int(result.trial.arm) // at_once

    stops: dict[tuple[str, int], int] = {}
    pruners = {result.trial.seed: MedianPruner(sign) for result in results}
    for _, batch in itertools.groupby(sorted(results, key=batch_of), batch_of):
        finished = []
        for result in batch:
            pruner, reached = pruners[result.trial.seed], evaluations(result, measure)
            step = pruner.stops_at(reached, result.trial.experiment.steps)
            if step is not None:
                stops[result.key] = step
            elif result.finished and reached:
                finished.append((pruner, reached))
        for pruner, reached in finished:
            pruner.add(reached)
    return stops


def outcome(results: Sequence[Result | None], stops: Mapping[tuple[str, int], int], measure: str) -> Outcome | None:
    """What came of an arm, given the result of each seed, and where runs were stopped; None where one is not over."""
    runs = [run for run in results if run and run.status not in (MISSING, STOPPED)]
    if len(runs) < len(results):
        return None
    for run in runs:
        last = stops.get(run.key)
        if last is not None:
            return Outcome(evaluations=tuple(one for one in evaluations(run, measure) if one[0] <= last))
    ended = [run for run in runs if run.status != FAILED]
    if not ended:
        return Outcome(failed=True)
    values = [run.measures.get(measure, math.nan) if run.status == FINISHED else math.nan for run in ended]
    mean = sum(values) / len(values)
    return Outcome(mean if math.isfinite(mean) else math.nan)
