"""A sweep: a base experiment and ranges of its fields, from which arms are drawn, and the best of them is looked for.

    space = {"optimizer.learning_rate": LogUniform(1e-4, 1e-2), "model.layers": Integer(2, 6)}
    Sweep(base, space, method="tpe", count=32)

Arms are numbered. Those of a grid, of random search and of a Latin hypercube are known before the first run. TPE asks
for `at_once` of them when all before are over (tpe.py). What it asks follows from what came of those and from its seed,
so that nothing is lost when a study is killed. In a folder (`at`) the draws are kept too, in a file that Optuna reads,
and there they are what counts: more seeds, a run that failed and now does not, or another version of Optuna leave the
arms as they are.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.experiment import Experiment
from lm.study.comparable import comparable_measure, drawn_from
from lm.study.pruning import Outcome, outcome, pruned
from lm.study.space import Draw, Space, changed, check, grid, label, latin, random, ranges, settings, size
from lm.study.trial import LEAN, Result, Trial, distinct_seeds, every_seed
from lm.value import suggest

if TYPE_CHECKING:
    from lm.study.best import Best
    from lm.study.report import Findings
    from lm.study.tpe import Search

METHODS = ("grid", "random", "latin", "tpe")
JOURNAL = "optuna.journal"  # in the study's folder


@dataclass(frozen=True)
class Sweep:
    """Arms drawn from `space` (see space.py) around `base`: the whole "grid", or `count` by "random" search, from a
    "latin" hypercube, or by "tpe", tree-structured Parzen estimators (Bergstra et al. 2011; Optuna's, multivariate).
    No arm is there twice: what is drawn again is drawn anew, and a space of fewer arms than `count` is a grid (`remark`
    says so).

    `seeds` are those of each arm's runs, `search_seed` is the search's own. With `prune`, a run that is worse at an
    evaluation than half of those of earlier batches were there is to be stopped (`to_stop`); arms then come `at_once`
    at a time whatever the method, so that what is stopped does not follow from how fast the runs are. `folder` is set
    by `at`. Of the measure "" see lm/study/comparable.py."""

    base: Experiment
    space: Space
    method: str = "random"
    count: int = 16
    seeds: Iterable[int] = (0,)
    measure: str = ""
    prune: bool = False
    at_once: int = 4
    search_seed: int = 0
    folder: Path | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", distinct_seeds(self.seeds))
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: {suggest(self.method, METHODS)}")
        for name in ("count", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number of arms, at least 1")
        if self.search_seed < 0:
            raise ValueError(f"search_seed={self.search_seed}: expected at least 0")
        check(self.base, self.space)
        drawn = drawn_from(self.base, (name.partition(" ")[0] for name in ranges(self.space)))
        object.__setattr__(self, "measure", comparable_measure(self.measure, self.base, drawn))
        assert self.sign  # raises where it is not known what is better
        if self.method == "grid":
            grid(self.space)  # raises where it is open how many points

    def at(self, folder: Path) -> "Sweep":
        """This sweep in a study's folder: what TPE has suggested there stays as it is."""
        return replace(self, folder=folder)

    @property
    def summary(self) -> str:
        """Its size in a few words."""
        return f"{self.method}, {len(self._fixed) if self.method != 'tpe' else self.count} arms"

    # ------------------------------------------------------------ arms

    def arms(self, results: Sequence[Result] = ()) -> dict[str, Draw]:
        """What is drawn for the arms known now, by their names, in their order: see space.py."""
        if self.method == "tpe":
            numbered = enumerate(self._search.draws(lambda n: self._outcomes(map(_name, range(n)), results)))
            return {_name(i): drawn for i, drawn in numbered}
        return {_name(i): drawn for i, drawn in self._fixed.items()}

    @functools.cached_property
    def _fixed(self) -> dict[int, Draw]:
        """The draws by number, where they do not follow from results."""
        if self.method == "grid":
            return dict(enumerate(grid(self.space)))
        return (random if self.method == "random" else latin)(self.space, self.count, self.search_seed)

    @property
    def remark(self) -> str:
        """What is to be known of the number of arms: that the space has fewer than `count`, or that some were drawn
        again. Empty where there is nothing."""
        if self.method == "grid":
            return ""
        arms = size(self.space) if self.method == "tpe" else len(self._fixed)
        if arms < self.count:
            return f"The space has {arms:.0f} different arms, fewer than count={self.count}."
        again = 0 if self.method == "tpe" else sum(number >= self.count for number in self._fixed)
        return f"Of {self.count} draws, {again} came again: others took their place." if again else ""

    def trials(self, results: Sequence[Result] = ()) -> list[Trial]:
        """Every arm known now at every seed, batch by batch, and in each seed by seed."""
        draws = list(self.arms(results).items())
        step = self.at_once if self.method == "tpe" or self.prune else len(draws)
        outcomes = self._outcomes(dict(draws), results) if self.prune and self.method != "tpe" else []
        trials: list[Trial] = []
        for start in range(0, len(draws), step):
            if None in outcomes[:start]:
                break
            batch = {name: self._experiment(name, drawn) for name, drawn in draws[start : start + step]}
            trials += every_seed(batch, self.seeds)
        return trials

    @functools.cached_property
    def _search(self) -> "Search":
        from lm.study.tpe import Search  # raises ValueError without Optuna

        file = self.folder / JOURNAL if self.folder else None
        return Search(self.space, self.sign, self.count, self.at_once, self.search_seed, file)

    @functools.cached_property
    def _built(self) -> dict[tuple[Any, ...], Experiment]:
        return {}

    def _experiment(self, name: str, drawn: Draw) -> Experiment:
        key = name, *drawn.items()
        if key not in self._built:
            chosen = settings(self.space, drawn)
            try:
                self._built[key] = changed(self.base, chosen).replace(LEAN, name=name)
            except ValueError as error:
                chosen_text = ", ".join(f"{path}={label(one)}" for path, one in chosen.items())
                raise ValueError(f"arm {name!r} ({chosen_text}): {error}") from None
        return self._built[key]

    # ------------------------------------------------------------ what came of them

    @property
    def sign(self) -> int:
        """-1 where less of the measure is better, 1 where more is. Raises ValueError where that is not known."""
        from lm.study.verdicts import BETTER, direction

        if not direction(self.measure):
            known = ", ".join(BETTER)
            raise ValueError(f"measure={self.measure!r}: expected one of {known}, or SOURCE/ and one of them")
        return direction(self.measure)

    def to_stop(self, results: Sequence[Result]) -> dict[tuple[str, int], int]:
        """(arm, seed) -> the step at which that run is to be stopped, of those that are; none without `prune`. A run
        that was over before anybody looked is among them too."""
        return pruned(results, self.measure, self.sign, self.at_once) if self.prune else {}

    def _outcomes(self, arms: Iterable[str], results: Sequence[Result]) -> list[Outcome | None]:
        """What came of these arms; None for one that is not over."""
        stops = self.to_stop(results)
        by_key = {result.key: result for result in results}
        by_arm = [[by_key.get((name, seed)) for seed in self.seeds] for name in arms]
        return [outcome(runs, stops, self.measure) for runs in by_arm]

    # ------------------------------------------------------------ for the report

    def analyse(self, results: Sequence[Result]) -> "Best":
        """Which settings are best, and how sure that is. Raises ValueError where no run has finished."""
        from lm.study.best import best

        chosen = {name: (drawn, settings(self.space, drawn)) for name, drawn in self.arms(results).items()}
        return replace(best(results, chosen, self.space, self.measure, self.sign), remark=self.remark)

    def findings(self, results: Sequence[Result]) -> "Findings":
        """What a sweep adds to the report of a study."""
        from lm.study import best, report

        try:
            analysis = self.analyse(results)
        except ValueError as error:
            return report.Findings(f"No conclusion yet: {error}.")
        return best.findings(analysis)


def _name(number: int) -> str:
    """Of the arm of that draw: a draw that was there already leaves a gap."""
    return f"{number:03d}"
