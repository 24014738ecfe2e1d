"""An ablation: a base experiment, arms that each declare what they change, seeds, and what is held equal.

    positions = Ablation(base, arms={"rotary": {}, "alibi": dict(model=dict(positions=Alibi()))}, match="flops")

Arms are matched. One seed means the same order of the data and the same first value of every parameter that they share,
in all arms; `match` gives them one budget; and an arm whose resolved experiment differs in anything that it does not
declare is refused.
"""

import bisect
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lm import value
from lm.experiment import Experiment
from lm.model import count
from lm.study.comparable import comparable_measure, differ_in
from lm.study.trial import LEAN, Resized, Result, Trial, distinct_seeds, every_seed, step_flops, training_flops
from lm.value import suggest

Changes = Mapping[str, Any]
WIDTH_STEP = 8  # a resized width is a multiple of it


@dataclass(frozen=True)
class Ablation:
    """`arms` by name: a nested change of `base`, or a whole experiment, whose differences `declared` then lists.

    The arm without changes is what the others are compared with; where none is, one named "base" is added. `match`
    holds equal the training "flops" (by the number of steps), the "params" (by the model's width) or the "steps" (as
    they are). `measure` is what arms are compared by: "loss" or "bits_per_byte", means over the sources, or
    "SOURCE/MEASURE"; "" is the loss, or across tokenizers bits per byte (lm/study/comparable.py)."""

    base: Experiment
    arms: Mapping[str, Changes | Experiment]
    seeds: Iterable[int] = range(3)
    match: str = "flops"
    measure: str = ""
    declared: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", distinct_seeds(self.seeds))
        if self.match not in MATCHES:
            raise ValueError(f"match={self.match!r}: {suggest(self.match, MATCHES)}")
        if not self.arms:
            raise ValueError("arms={}: expected at least one, a name and what it changes")
        for name in self.arms:
            if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
                raise ValueError(f"arm {name!r}: expected letters, digits and -_.+, as a folder is named so")

        if self.arms.get("base", {}) not in ({}, self.base):
            raise ValueError(
                "arm 'base' has changes, and base is what arms are compared with: rename it, as in 'longer'"
            )
        differ = differ_in(self.base, self.arms.values())
        object.__setattr__(self, "measure", comparable_measure(self.measure, self.base, differ))

    @property
    def summary(self) -> str:
        """Its size in a few words."""
        return f"{len(self.arms)} arms, {len(tuple(self.seeds))} seeds"

    @property
    def base_arm(self) -> str:
        """The arm that the others are compared with."""
        return next((name for name, changes in self.arms.items() if changes == {} or changes == self.base), "base")

    @functools.cached_property
    def resolved(self) -> dict[str, tuple[Experiment, Resized]]:
        """Each arm's experiment, matched, and what was resized to that end. Raises ValueError for an arm that cannot be
        built, or differs in what it does not declare."""
        arms = self.arms if self.base_arm in self.arms else {"base": {}, **self.arms}
        return {name: self._arm(name, changes) for name, changes in arms.items()}

    def _arm(self, name: str, changes: Changes | Experiment) -> tuple[Experiment, Resized]:
        try:
            arm = changes if isinstance(changes, Experiment) else self.base.replace(changes)
            declared = self.declared if isinstance(changes, Experiment) else (*self.declared, *value.paths(changes))
            check_declared(self.base, arm, declared)
            resized = MATCHES[self.match](self.base, arm)
            new = {path: change[1] for path, change in resized.items()}
            return arm.replace(value.nested(new)).replace(LEAN, name=name), resized
        except ValueError as error:
            raise ValueError(f"arm {name!r}: {error}") from None

    def differences(self) -> dict[str, list[tuple[str, Any, Any]]]:
        """arm -> (path, base's value, the arm's) for all in which they differ, less the name."""
        base = value.plain(self.base.replace(LEAN))
        return {
            name: [d for d in value.differences(base, value.plain(arm)) if d[0] != "name"]
            for name, (arm, _) in self.resolved.items()
        }

    def trials(self, results: Sequence[Result] = ()) -> list[Trial]:
        """Every arm at every seed, seed by seed: what is finished early on has all arms in it."""
        trials = every_seed({name: arm for name, (arm, _) in self.resolved.items()}, self.seeds)
        return [replace(trial, resized=self.resolved[trial.arm][1]) for trial in trials]


def check_declared(base: Experiment, arm: Experiment, declared: Iterable[str]) -> None:
    """Raises ValueError where `arm` differs from `base` in a field that is not, and is not inside, one `declared`."""
    known = [*declared, "name"]
    for path, old, new in value.differences(value.plain(base), value.plain(arm)):
        if not any(path == d or path.startswith(f"{d}.") for d in known):
            raise ValueError(f"it differs in {path} ({old!r} in the base, {new!r} here), which is not declared")
    orders = [list(one.data.mixture.sources) for one in (base, arm)]
    if orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]):
        raise ValueError(f"its sources are in another order, {', '.join(orders[1])}, from which batches follow")


# ---------------------------------------------------------------- matching


def match_flops(base: Experiment, arm: Experiment) -> Resized:
    """The steps at which `arm` has trained with the base's FLOPs, to the nearest whole step."""
    budget, step = training_flops(base), step_flops(arm)
    steps = round(budget / step)
    if steps < 1:
        raise ValueError(f"the base's budget of {budget:.3g} FLOPs is too small for one step of {step:.3g}")
    return {} if steps == arm.steps else {"steps": (arm.steps, steps)}


def match_params(base: Experiment, arm: Experiment) -> Resized:
    """The width at which `arm` has as many parameters as the base, as nearly as multiples of WIDTH_STEP come."""
    wanted = count.parameters(base.model)

    def parameters(width: int) -> int:
        return count.parameters(arm.replace(model=dict(width=width)).model)

    if parameters(arm.model.width) == wanted:
        return {}
    most = 2  # in units of WIDTH_STEP
    while parameters(most * WIDTH_STEP) < wanted:
        most *= 2
    n = bisect.bisect_left(range(most), wanted, lo=1, key=lambda n: parameters(n * WIDTH_STEP))
    width = WIDTH_STEP * min((max(n - 1, 1), n), key=lambda n: abs(parameters(n * WIDTH_STEP) - wanted))
    nearer = abs(parameters(width) - wanted) < abs(parameters(arm.model.width) - wanted)
    return {"model.width": (arm.model.width, width)} if nearer else {}


MATCHES: Mapping[str, Callable[[Experiment, Experiment], Resized]] = {
    "flops": match_flops,
    "params": match_params,
    "steps": lambda base, arm: {},
}
