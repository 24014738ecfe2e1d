"""What Optuna does for a sweep: it asks for arms (TPE), stops those that fall behind, and weighs the settings.

Each function makes an Optuna study anew, in memory, from what came of the arms so far; a copy of it is kept as a file
of Optuna's own, for its tools, and for the draws in it.
"""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from lm.study.space import Draw, Range, Space, draw

NAME = "sweep"  # of the Optuna study
AGAIN = 8  # times that TPE is asked again, where it asks for what it has asked for
SETTLED = 0.25  # of a run's steps, before which none is stopped
TO_COMPARE = 4  # runs that have finished, below which none is stopped
TO_WEIGH = 10  # arms, below which settings are not weighed
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Outcome:
    """What came of an arm: a `value`, nan where it did not come to its end; then it counts as worse than all that did,
    or not at all where it `failed`. `on_the_way`: (step, value) up to where it was stopped."""

    value: float = math.nan
    on_the_way: tuple[tuple[int, float], ...] = ()
    failed: bool = False

    @property
    def state(self) -> TrialState:
        """The same for Optuna."""
        ended = TrialState.FAIL if self.failed else TrialState.PRUNED
        return ended if math.isnan(self.value) else TrialState.COMPLETE


def told(
    draws: Sequence[Draw],
    outcomes: Sequence[Outcome | None],
    ranges: Mapping[str, Range],
    sign: int,
    storage: Any = None,
) -> optuna.Study:
    """An Optuna study that knows all this; an arm whose outcome is None is under way. `sign` as in `direction`."""
    way = optuna.study.StudyDirection.MAXIMIZE if sign > 0 else optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(storage=storage, study_name=NAME, direction=way)
    for drawn, outcome in zip(draws, outcomes, strict=True):
        done = outcome is not None and outcome.state == TrialState.COMPLETE
        study.add_trial(
            create_trial(
                state=outcome.state if outcome else TrialState.RUNNING,
                value=outcome.value if outcome and done else None,
                params=drawn,
                distributions={name: ranges[name].distribution() for name in drawn},
                intermediate_values=dict(outcome.on_the_way) if outcome else {},
            )
        )
    return study


def ask(study: optuna.Study, space: Space, seed: int, known: Sequence[Draw]) -> Draw:
    """The next arm, asked of TPE with a generator of its own; added to `study` as one under way."""
    drawn: Draw = {}
    for attempt in range(AGAIN):
        number = int(np.random.default_rng([seed, len(known), attempt]).integers(2**31))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
            study.sampler = optuna.samplers.TPESampler(
                seed=number, n_startup_trials=1, multivariate=True, group=True, constant_liar=True
            )
        trial = study.ask()
        drawn = _suggested(trial, space)
        if drawn not in known or attempt == AGAIN - 1:
            break
        study.tell(trial, state=TrialState.FAIL)
    return drawn


def _suggested(trial: optuna.Trial, space: Space) -> Draw:
    return draw(space, lambda name, one: one.suggest(trial, name))


# ---------------------------------------------------------------- the file


def read(file: Path) -> list[Draw]:
    """The draws in an Optuna journal; none, where there is no such file."""
    if not file.exists():
        return []
    try:
        study = optuna.load_study(study_name=NAME, storage=_storage(file))
        return [dict(trial.params) for trial in study.get_trials(deepcopy=False)]
    except Exception as error:  # a damaged journal raises whatever its lines lead to
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}): remove it, and the arms are asked for anew"
        ) from None


def write(
    file: Path, draws: Sequence[Draw], outcomes: Sequence[Outcome | None], ranges: Mapping[str, Range], sign: int
) -> None:
    """The study as an Optuna journal, whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        told(draws, outcomes, ranges, sign, _storage(part))
        os.replace(part, file)
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror or error}") from None


def _storage(file: Path) -> JournalStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(file)))


# ---------------------------------------------------------------- stopping early


class Median:
    """Stops a run that is, at an evaluation, worse than the median of those that have finished was there (Optuna's
    MedianPruner), at the earliest after a quarter of its steps."""

    def __init__(self, sign: int):
        self.study = told([], [], {}, sign)

    def stops(self, on_the_way: Sequence[tuple[int, float]], steps: int) -> int | None:
        """The first evaluation at which a run of so many steps is stopped, if any."""
        pruner = optuna.pruners.MedianPruner(n_startup_trials=TO_COMPARE, n_warmup_steps=math.ceil(SETTLED * steps))
        for i, (step, _) in enumerate(on_the_way):
            if step < steps and pruner.prune(self.study, self._trial(TrialState.RUNNING, None, on_the_way[: i + 1])):
                return step
        return None

    def add(self, value: float, on_the_way: Sequence[tuple[int, float]]) -> None:
        """A run that has finished, to compare with."""
        self.study.add_trial(self._trial(TrialState.COMPLETE, value, on_the_way))

    @staticmethod
    def _trial(state: TrialState, value: float | None, on_the_way: Sequence[tuple[int, float]]) -> FrozenTrial:
        return create_trial(state=state, value=value, intermediate_values=dict(on_the_way))


# ---------------------------------------------------------------- what matters


def importance(
    draws: Sequence[Draw], values: Sequence[float], ranges: Mapping[str, Range], sign: int
) -> dict[str, float]:
    """How much each setting decides whether an arm is among the best: shares that sum to 1, the largest first.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) of the best tenth, or the best five where that is more. Empty for
    fewer than TO_WEIGH arms or two settings."""
    if len(draws) < TO_WEIGH or len({name for drawn in draws for name in drawn}) < 2:
        return {}
    study = told(draws, [Outcome(value) for value in values], ranges, sign)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(draws)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
