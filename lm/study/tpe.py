"""Arms asked of tree-structured Parzen estimators, and which settings matter: what Optuna does for a sweep.

Each function makes an Optuna study anew, in memory, from what came of the arms so far; a copy of it is kept as a file
of Optuna's own, for its tools, and for the draws in it. Optuna is an extra: without it, to import this raises
ValueError, with what to install.
"""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState, create_trial
except ModuleNotFoundError as error:
    raise ValueError(f'TPE and PED-ANOVA need {error.name}: pip install -e ".[sweep]"') from None

from lm.study.pruning import Outcome
from lm.study.space import Draw, Integer, Range, Space, draw, latin, ranges, settings

NAME = "sweep"  # of the Optuna study
FIRST = 8  # arms that are a Latin hypercube
AGAIN = 8  # times that TPE is asked again, where it asks for what it has asked for
TO_WEIGH = 10  # arms, below which settings are not weighed
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search:
    """The arms of a sweep by TPE (Bergstra et al. 2011; Optuna's, multivariate): the first FIRST from a Latin
    hypercube, the others asked for `at_once` when all before are over.

    What it asks for follows from the outcomes and from `seed`: each arm has a generator of its own. Draws that the
    journal in `file` has stay as they are.

    Args:
      space: the ranges (space.py).
      count: arms in all.
      at_once: arms in a batch.
      seed: that of the search.
      sign: -1 where less of the measure is better, 1 where more is.
      file: the Optuna journal; None keeps none.

    Raises:
      ValueError: the journal cannot be read, or has draws of another space.
    """

    def __init__(self, space: Space, count: int, at_once: int, seed: int, sign: int, file: Path | None = None):
        self.space, self.count, self.at_once, self.seed, self.sign, self.file = space, count, at_once, seed, sign, file
        self.known = _read(file, space) if file else []
        self.written: tuple[int, Sequence[Outcome | None]] = len(self.known), [None] * len(self.known)
        self.batches: dict[tuple[Outcome | None, ...], list[Draw]] = {}

    def draws(self, outcomes: Callable[[int], Sequence[Outcome | None]]) -> list[Draw]:
        """The draws known by now. `outcomes(n)` are those of the first n arms, None for one that is not over."""
        draws = self.known[: self.count]
        while True:
            done = outcomes(len(draws))
            if None in done or len(draws) >= self.count:
                self._keep(draws, done)
                return draws
            draws = draws + self._batch(draws, done)

    def _batch(self, draws: list[Draw], outcomes: Sequence[Outcome | None]) -> list[Draw]:
        """The next batch, given what came of all before it."""
        key = tuple(outcomes)
        if key not in self.batches:
            number = min(self.at_once, self.count - len(draws))
            batch = latin(self.space, FIRST, self.seed)[len(draws) : len(draws) + number]
            if len(batch) < number:
                pending = [*outcomes, *[None] * len(batch)]
                study = _study(draws + batch, pending, ranges(self.space), self.sign)
                while len(batch) < number:
                    batch.append(_ask(study, self.space, self.seed, draws + batch))
            self.batches[key] = batch
        return self.batches[key]

    def _keep(self, draws: list[Draw], outcomes: Sequence[Outcome | None]) -> None:
        """Write the journal, where it has not all of this yet: with new arms, and when the last is over."""
        count, known = self.written
        new = len(draws) > count or (len(draws) == count and None not in outcomes and known != outcomes)
        if self.file and new:
            _write(self.file, draws, outcomes, ranges(self.space), self.sign)
            self.written = len(draws), outcomes


def _study(
    draws: Sequence[Draw],
    outcomes: Sequence[Outcome | None],
    ranges: Mapping[str, Range],
    sign: int,
    storage: JournalStorage | None = None,
) -> optuna.Study:
    """An Optuna study of these arms; one whose outcome is None is under way.

    Args:
      draws: what was drawn for each arm, by the names of `ranges`.
      outcomes: what came of each.
      ranges: all ranges by name.
      sign: -1 where less is better, 1 where more is.
      storage: where Optuna keeps it; None is in memory.
    """
    study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize" if sign > 0 else "minimize")
    for drawn, outcome in zip(draws, outcomes, strict=True):
        study.add_trial(
            create_trial(
                state=_state(outcome),
                value=outcome.value if outcome and _state(outcome) == TrialState.COMPLETE else None,
                params=drawn,
                distributions={name: _distribution(ranges[name]) for name in drawn},
                intermediate_values=dict(outcome.evaluations) if outcome else {},
            )
        )
    return study


def _state(outcome: Outcome | None) -> TrialState:
    if outcome is None:
        return TrialState.RUNNING
    ended = TrialState.FAIL if outcome.failed else TrialState.PRUNED
    return ended if math.isnan(outcome.value) else TrialState.COMPLETE


def _distribution(one: Range) -> BaseDistribution:
    if one.labels:
        return CategoricalDistribution(one.labels)
    if isinstance(one, Integer):
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _ask(study: optuna.Study, space: Space, seed: int, known: Sequence[Draw]) -> Draw:
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
        drawn = draw(space, partial(_suggest, trial))
        if drawn not in known or attempt == AGAIN - 1:
            break
        study.tell(trial, state=TrialState.FAIL)
    return drawn


def _suggest(trial: optuna.Trial, name: str, one: Range) -> Any:
    if one.labels:
        return trial.suggest_categorical(name, one.labels)
    if isinstance(one, Integer):
        return trial.suggest_int(name, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(name, one.low, one.high, log=one.log)


# ---------------------------------------------------------------- the journal


def _read(file: Path, space: Space) -> list[Draw]:
    """The draws in an Optuna journal; none, where there is no such file."""
    if not file.exists():
        return []
    try:
        study = optuna.load_study(study_name=NAME, storage=_storage(file))
        draws = [dict(trial.params) for trial in study.get_trials(deepcopy=False)]
    except Exception as error:  # a damaged journal raises whatever its lines lead to
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}): remove it, and the arms are asked for anew"
        ) from None
    for drawn in draws:
        try:
            settings(space, drawn)
        except ValueError as error:
            raise ValueError(f"{file} is of another space: {error}; choose another --workdir") from None
    return draws


def _write(
    file: Path, draws: Sequence[Draw], outcomes: Sequence[Outcome | None], ranges: Mapping[str, Range], sign: int
) -> None:
    """The study as an Optuna journal, whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        _study(draws, outcomes, ranges, sign, _storage(part))
        os.replace(part, file)
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror or error}") from None


def _storage(file: Path) -> JournalStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(file)))


# ---------------------------------------------------------------- what matters


def importance(
    draws: Sequence[Draw], values: Sequence[float], ranges: Mapping[str, Range], sign: int
) -> dict[str, float]:
    """How much each setting decides whether an arm is among the best: shares that sum to 1, the largest first.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) of the best tenth, or the best five where that is more. Empty for
    fewer than TO_WEIGH arms or two settings."""
    if len(draws) < TO_WEIGH or len({name for drawn in draws for name in drawn}) < 2:
        return {}
    study = _study(draws, [Outcome(value) for value in values], ranges, sign)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(draws)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
