"""Arms suggested by tree-structured Parzen estimators, and which settings matter: what Optuna does for a sweep.

An Optuna study is made anew each time, in memory, from what came of the arms so far; a copy of it is kept as a file of
Optuna's own, for its tools, and for the draws in it. Optuna is an extra: without it, to import this raises ValueError,
with what to install.
"""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from lm.study.space import Draw, Integer, Range, Space, draw, latin, ranges, settings, size

NAME = "sweep"  # of the Optuna study
FIRST = 8  # arms that are a Latin hypercube
AGAIN = 8  # attempts, where TPE suggests an arm that there is already
TO_WEIGH = 10  # arms, below which settings are not weighed
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass
class Search:
    """The `count` arms, or all where `space` has fewer, of a sweep by TPE (Bergstra et al. 2011; Optuna's,
    multivariate): the first FIRST from a Latin hypercube, the others suggested `at_once` when all before are over.
    `sign`: -1 where less of the measure is better, 1 where more is.

    What it suggests follows from the outcomes and from `seed`: each arm has a generator of its own. Draws that the
    Optuna journal in `file` has stay as they are (None: there is no file)."""

    space: Space
    sign: int
    count: int = 0
    at_once: int = 1
    seed: int = 0
    file: Path | None = None

    def __post_init__(self) -> None:
        self.ranges = ranges(self.space)
        self.count = int(min(self.count, max(size(self.space), len(self.known))))
        self.written: Sequence[Outcome | None] = [None] * len(self.known)
        self.batches: dict[tuple[Outcome | None, ...], list[Draw]] = {}

    @cached_property
    def known(self) -> list[Draw]:
        """The draws in the journal. Raises ValueError where it cannot be read, or is of another space."""
        if not self.file or not self.file.exists():
            return []
        try:
            study = optuna.load_study(study_name=NAME, storage=_storage(self.file))
            draws = [dict(trial.params) for trial in study.get_trials(deepcopy=False)]
        except Exception as error:  # a damaged journal raises whatever its lines lead to
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.file} cannot be read ({what}): remove it, and the search begins anew") from None
        try:
            for drawn in draws:
                settings(self.space, drawn)
        except ValueError as error:
            raise ValueError(f"{self.file} is of another space: {error}; choose another --workdir") from None
        return draws

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
            batch = list(latin(self.space, FIRST, self.seed).values())[len(draws) : len(draws) + number]
            if len(batch) < number:
                study = self._study(draws + batch, [*outcomes, *[None] * len(batch)])
                while len(batch) < number:
                    batch.append(self._ask(study, draws + batch))
            self.batches[key] = batch
        return self.batches[key]

    def _ask(self, study: optuna.Study, known: Sequence[Draw]) -> Draw:
        """The next arm, suggested by TPE with a generator of its own; added to `study` as one under way."""
        drawn: Draw = {}
        for attempt in range(AGAIN):
            number = int(np.random.default_rng([self.seed, len(known), attempt]).integers(2**31))
            with _experimental():
                study.sampler = optuna.samplers.TPESampler(
                    seed=number, n_startup_trials=1, multivariate=True, group=True, constant_liar=True
                )
            trial = study.ask()
            drawn = draw(self.space, partial(_suggest, trial))
            if drawn not in known or attempt == AGAIN - 1:
                break
            study.tell(trial, state=TrialState.FAIL)
        return drawn

    def _keep(self, draws: list[Draw], outcomes: Sequence[Outcome | None]) -> None:
        """Write the journal, whole or not at all, where it has not all of this yet: with new arms, and when the last is
        over."""
        news = len(draws) > len(self.written) or (None not in outcomes and self.written != outcomes)
        if not self.file or len(draws) < len(self.written) or not news:
            return
        part = self.file.with_name(f".{self.file.name}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            self._study(draws, outcomes, _storage(part))
            os.replace(part, self.file)
        except OSError as error:
            raise ValueError(f"cannot write {self.file}: {error.strerror or error}") from None
        self.written = outcomes

    def importance(self, draws: Sequence[Draw], values: Sequence[float]) -> Mapping[str, float]:
        """How much each setting decides whether an arm is among the best: shares that sum to 1, the largest first.

        PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) of the best tenth, or the best five where that is more. Empty
        for fewer than TO_WEIGH arms or two settings."""
        if len(draws) < TO_WEIGH or len({name for drawn in draws for name in drawn}) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(draws)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = self._study(draws, [Outcome(value) for value in values])
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def _study(
        self, draws: Sequence[Draw], outcomes: Sequence[Outcome | None], storage: JournalStorage | None = None
    ) -> optuna.Study:
        """An Optuna study of these arms; one whose outcome is None is under way."""
        way = optuna.study.StudyDirection.MAXIMIZE if self.sign > 0 else optuna.study.StudyDirection.MINIMIZE
        study = optuna.create_study(storage=storage, study_name=NAME, direction=way)
        for drawn, outcome in zip(draws, outcomes, strict=True):
            state = _state(outcome)
            study.add_trial(
                create_trial(
                    state=state,
                    value=outcome.value if outcome and state == TrialState.COMPLETE else None,
                    params=drawn,
                    distributions={name: _distribution(self.ranges[name]) for name in drawn},
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


def _suggest(trial: optuna.Trial, name: str, one: Range) -> Any:
    if one.labels:
        return trial.suggest_categorical(name, one.labels)
    if isinstance(one, Integer):
        return trial.suggest_int(name, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(name, one.low, one.high, log=one.log)


def _storage(file: Path) -> JournalStorage:
    with _experimental():
        return JournalStorage(JournalFileBackend(str(file)))


def _experimental() -> "warnings.catch_warnings[None]":
    """Without Optuna's warning that something may change."""
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)
