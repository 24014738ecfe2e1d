"""A sweep: a base experiment and ranges of its fields, from which arms are drawn, and the best of them is looked for.

    Sweep(base, {"optimizer.learning_rate": Log(1e-4, 1e-2), "model.layers": Whole(2, 6)}, method="tpe", count=32)

Arms are numbered. Those of a grid, of random search and of a Latin hypercube are known before the first run. TPE asks
for `at_once` of them when all before are over. What it asks follows from what came of those and from its seed: each
arm has a generator of its own, and Optuna's study is made anew from the results. So nothing is lost when a study is
killed. In a folder (`at`) the draws are kept too, in a file that Optuna reads, and there they are what counts: more
seeds, a run that failed and now does not, or another version of Optuna leave the arms as they are.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm.experiment import Experiment
from lm.study.ablation import LEAN
from lm.study.space import Draw, Settings, Space, changed, check, draw, grid, label, ranges, settings
from lm.study.trial import FAILED, FINISHED, MISSING, STOPPED, Result, Trial
from lm.value import suggest

if TYPE_CHECKING:
    from lm.study.best import Best
    from lm.study.searching import Outcome
    from lm.study.tables import Findings

METHODS = ("grid", "random", "latin", "tpe")
FIRST = 8  # arms of TPE that are a Latin hypercube
JOURNAL = "optuna.journal"  # in the study's folder


@dataclass(frozen=True)
class Sweep:
    """Arms drawn from `space` (see space.py) around `base`: the whole "grid", or `count` by "random" search, from a
    "latin" hypercube, or by "tpe", tree-structured Parzen estimators (Bergstra et al. 2011; Optuna's, multivariate).

    `seeds` are those of each arm's runs, `search_seed` is the search's own. With `prune`, a run that is worse at an
    evaluation than half of those of earlier batches were there is to be stopped (`to_stop`); arms then come `at_once`
    at a time whatever the method, so that what is stopped does not follow from how fast the runs are. `folder` is set
    by `at`."""

    base: Experiment
    space: Space
    method: str = "random"
    count: int = 16
    seeds: Iterable[int] = (0,)
    measure: str = "loss"
    prune: bool = False
    at_once: int = 4
    search_seed: int = 0
    folder: Path | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        seeds = tuple(self.seeds)
        object.__setattr__(self, "seeds", seeds)
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: {suggest(self.method, METHODS)}")
        for name in ("count", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number of arms, at least 1")
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds={seeds}: expected different numbers, at least 0, for instance range(3)")
        if self.search_seed < 0:
            raise ValueError(f"search_seed={self.search_seed}: expected at least 0")
        assert self.sign  # raises where it is not known what is better
        check(self.base, self.space)
        if self.method == "grid":
            grid(self.space)  # raises where it is not said how many points

    def at(self, folder: Path) -> "Sweep":
        """This sweep in a study's folder: what TPE has asked for there stays as it is."""
        return replace(self, folder=folder)

    # ------------------------------------------------------------ arms

    def draws(self, results: Sequence[Result] = ()) -> list[Draw]:
        """What the arms known now are, in their order: see space.py."""
        return self._tpe(results) if self.method == "tpe" else self._declared

    def settings(self, arm: str, results: Sequence[Result] = ()) -> Settings:
        """path -> value of one arm. Raises ValueError where there is no such arm, given these results."""
        draws = self.draws(results)
        names = [self._arm(i) for i in range(len(draws))]
        if arm not in names:
            raise ValueError(f"no arm {arm!r}: {suggest(arm, names)}")
        return settings(self.space, draws[names.index(arm)])

    def trials(self, results: Sequence[Result] = ()) -> list[Trial]:
        """Every arm known now at every seed, batch by batch, and in each seed by seed."""
        draws = self.draws(results)
        size = self.at_once if self.method == "tpe" or self.prune else len(draws)
        outcomes = self._outcomes(len(draws), results) if self.prune and self.method != "tpe" else []
        found: list[Trial] = []
        for start in range(0, len(draws), size):
            if None in outcomes[:start]:
                break
            batch = [(i, self._experiment(i, draws[i])) for i in range(start, min(start + size, len(draws)))]
            seeds: Any = self.seeds
            found += [Trial(self._arm(i), seed, arm.replace(seed=seed)) for seed in seeds for i, arm in batch]
        return found

    @staticmethod
    def _arm(number: int) -> str:
        return f"{number:03d}"

    @functools.cached_property
    def _declared(self) -> list[Draw]:
        """The arms that do not wait for others."""
        if self.method == "grid":
            return grid(self.space)
        if self.method == "random":
            return [self._drawn(np.random.default_rng([self.search_seed, i])) for i in range(self.count)]
        return self._latin(self.count)

    def _latin(self, count: int) -> list[Draw]:
        """McKay et al. 1979: along each range, one arm in each of `count` equal parts."""
        from scipy.stats import qmc

        names = list(ranges(self.space))
        shares = qmc.LatinHypercube(len(names), rng=np.random.default_rng(self.search_seed)).random(count)
        return [self._placed(dict(zip(names, row, strict=True))) for row in shares]

    def _placed(self, shares: dict[str, float]) -> Draw:
        return draw(self.space, lambda name, one: one.at(shares[name]))

    def _drawn(self, rng: np.random.Generator) -> Draw:
        return draw(self.space, lambda _, one: one.at(rng.random()))

    @functools.cached_property
    def _built(self) -> dict[tuple[Any, ...], Experiment]:
        return {}

    def _experiment(self, number: int, drawn: Draw) -> Experiment:
        key = number, *drawn.items()
        if key not in self._built:
            chosen = settings(self.space, drawn)
            try:
                self._built[key] = changed(self.base, chosen).replace(LEAN, name=self._arm(number))
            except ValueError as error:
                said = ", ".join(f"{path}={label(one)}" for path, one in chosen.items())
                raise ValueError(f"arm {self._arm(number)!r} ({said}): {error}") from None
        return self._built[key]

    # ------------------------------------------------------------ what came of them

    @property
    def sign(self) -> int:
        """-1 where less of the measure is better, 1 where more is. Raises ValueError where that is not known."""
        from lm.study.statistics import BETTER, direction

        if not direction(self.measure):
            known = ", ".join(BETTER)
            raise ValueError(f"measure={self.measure!r}: expected one of {known}, or SOURCE/ and one of them")
        return direction(self.measure)

    def to_stop(self, results: Sequence[Result]) -> dict[tuple[str, int], int]:
        """(arm, seed) -> the step at which that run is to be stopped, of those that are; none without `prune`. A run
        that was over before anybody looked is among them too."""
        if not self.prune:
            return {}
        from lm.study.searching import Median

        found: dict[tuple[str, int], int] = {}
        medians = {seed: Median(self.sign) for seed in self.seeds}
        ordered = sorted(results, key=lambda r: int(r.trial.arm))
        for batch in sorted({int(r.trial.arm) // self.at_once for r in ordered}):
            ended = []
            for result in (r for r in ordered if int(r.trial.arm) // self.at_once == batch):
                median, way = medians[result.trial.seed], self._on_the_way(result)
                step = median.stops(way, result.trial.experiment.steps)
                if step is not None:
                    found[result.trial.arm, result.trial.seed] = step
                elif result.finished and way:
                    ended.append((median, way))
            for median, way in ended:
                median.add(way[-1][1], way)
        return found

    def _on_the_way(self, result: Result) -> list[tuple[int, float]]:
        found = [(step, measures[self.measure]) for step, measures in result.evaluations if self.measure in measures]
        return [(step, value) for step, value in found if math.isfinite(value)]

    def _outcomes(self, count: int, results: Sequence[Result]) -> "list[Outcome | None]":
        """What came of the first `count` arms; None for one that is not over."""
        stopped = self.to_stop(results)
        runs: dict[str, dict[int, Result]] = {}
        for result in results:
            runs.setdefault(result.trial.arm, {})[result.trial.seed] = result
        return [self._outcome(runs.get(self._arm(i), {}), stopped) for i in range(count)]

    def _outcome(self, runs: dict[int, Result], stopped: dict[tuple[str, int], int]) -> "Outcome | None":
        from lm.study.searching import Outcome

        seeds: Any = self.seeds
        if any(seed not in runs or runs[seed].status in (MISSING, STOPPED) for seed in seeds):
            return None
        for seed in seeds:
            last = stopped.get((runs[seed].trial.arm, seed))
            if last is not None:
                way = [(step, value) for step, value in self._on_the_way(runs[seed]) if step <= last]
                return Outcome(on_the_way=tuple(way))
        ended = [run for run in runs.values() if run.trial.seed in seeds and run.status != FAILED]
        if not ended:
            return Outcome(failed=True)
        values = [r.measures.get(self.measure, math.nan) if r.status == FINISHED else math.nan for r in ended]
        mean = sum(values) / len(values)
        return Outcome(mean if math.isfinite(mean) else math.nan)

    # ------------------------------------------------------------ TPE

    @functools.cached_property
    def _journal(self) -> list[Draw]:
        """What the folder says was asked for. Raises ValueError where that is no part of this space."""
        from lm.study.searching import read

        file = (self.folder or Path()) / JOURNAL
        draws = read(file) if self.folder else []
        for drawn in draws:
            try:
                settings(self.space, drawn)
            except ValueError as error:
                raise ValueError(f"{file} is of another space: {error}; choose another --workdir") from None
        return draws

    @functools.cached_property
    def _asked(self) -> "dict[tuple[Outcome | None, ...], list[Draw]]":
        return {}

    def _tpe(self, results: Sequence[Result]) -> list[Draw]:
        draws = self._journal[: self.count]
        while True:
            outcomes = self._outcomes(len(draws), results)
            if None in outcomes or len(draws) >= self.count:
                self._keep(draws, outcomes)
                return draws
            draws = draws + self._ask(draws, outcomes)

    def _ask(self, draws: list[Draw], outcomes: "list[Outcome | None]") -> list[Draw]:
        """The next batch, given what came of all before it."""
        from lm.study import searching

        key = tuple(outcomes)
        if key not in self._asked:
            number = min(self.at_once, self.count - len(draws))
            asked = self._latin(FIRST)[len(draws) : len(draws) + number]
            if len(asked) < number:
                study = searching.told(draws + asked, [*outcomes, *[None] * len(asked)], ranges(self.space), self.sign)
                while len(asked) < number:
                    asked.append(searching.ask(study, self.space, self.search_seed, draws + asked))
            self._asked[key] = asked
        return self._asked[key]

    @functools.cached_property
    def _kept(self) -> "list[tuple[int, list[Outcome | None]]]":
        return [(len(self._journal), [None] * len(self._journal))]

    def _keep(self, draws: list[Draw], outcomes: "list[Outcome | None]") -> None:
        """Write the journal, where it does not say all of this yet: with new arms, and when the last is over."""
        if not self.folder or len(draws) < self._kept[-1][0]:
            return
        count, known = self._kept[-1]
        if len(draws) > count or (None not in outcomes and known != outcomes):
            from lm.study.searching import write

            write(self.folder / JOURNAL, draws, outcomes, ranges(self.space), self.sign)
            self._kept.append((len(draws), outcomes))

    # ------------------------------------------------------------ what it tells

    def analyse(self, results: Sequence[Result]) -> "Best":
        """Which settings are best, and how sure that is. Raises ValueError where no run has finished."""
        from lm.study.best import best

        draws = self.draws(results)
        chosen = {self._arm(i): (drawn, settings(self.space, drawn)) for i, drawn in enumerate(draws)}
        return best(results, chosen, self.space, self.measure, self.sign)

    def findings(self, results: Sequence[Result]) -> "Findings":
        """What a sweep adds to the report of a study."""
        from lm.study.best import record, sections
        from lm.study.tables import Findings

        try:
            found = self.analyse(results)
        except ValueError as error:
            return Findings(f"Nothing can be told yet: {error}.")
        return Findings(found.headline, sections(found), {"settings.csv": record(found)}, lists_arms=True)
