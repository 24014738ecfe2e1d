"""A sweep of learning rates over widths: whether the best rate transfers to wider models (2203.03466, figure 1).

    rates = Transfer(base, widths=(64, 128, 256), rates=(4e-3, 8e-3, 16e-3), seeds=range(3))

`base` is in muP; the same is done in the standard parametrisation, where the best rate falls. All rates and seeds of a
width share one program. What is made of it is in optimum.py.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

from lm.experiment import Experiment
from lm.model.parametrisation import Parametrisation
from lm.model.widths import name_of, widened
from lm.study.trial import LEAN, Result, Trial, distinct_seeds, every_seed
from lm.train.optim import Optimizer

if TYPE_CHECKING:
    from lm.study.optimum import LrTransfer
    from lm.study.report import Findings
    from lm.study.statistics import Measured


class Arm(NamedTuple):
    """One width in one parametrisation at one learning rate."""

    rule: str
    width: int
    rate: float

    @property
    def name(self) -> str:
        """That of its folder, as in MuP-128-0.004."""
        return f"{self.rule}-{self.width}-{self.rate:g}"


@dataclass(frozen=True)
class Transfer:
    """`base` at `widths` and peak learning `rates`, at every seed.

    At each width the feed-forward grows in proportion, and so do the `grows`: "heads" or "head_dim" (see Coordinates).
    An optimizer with several rates has all of them changed by one factor. With `twin` the same is trained in the
    standard parametrisation. The best rate transfers where the interval of the exponent of the width in it lies within
    `tolerance` of 0."""

    base: Experiment
    widths: tuple[int, ...] = (64, 128, 256)
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
    seeds: Iterable[int] = range(3)
    measure: str = "loss"
    tolerance: float = 0.25
    grows: str = "heads"
    twin: bool = True

    def __post_init__(self) -> None:
        for name, values in (("widths", self.widths), ("rates", self.rates), ("seeds", distinct_seeds(self.seeds))):
            object.__setattr__(self, name, tuple(values))
        for name, least in (("widths", 2), ("rates", 3)):
            values = getattr(self, name)
            if len(values) < least or sorted(set(values)) != list(values) or values[0] <= 0:
                raise ValueError(f"{name}={values}: expected at least {least} above 0, rising")
        if not all(map(math.isfinite, self.rates)) or len({f"{rate:g}" for rate in self.rates}) < len(self.rates):
            raise ValueError(f"rates={self.rates}: expected numbers that differ in their first six digits")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance}: expected an exponent above 0, for instance 0.25")
        for width in self.widths:
            widened(self.base.model, width, self.grows)
        with_rate(self.base.optimizer, self.rates[0])

    @property
    def summary(self) -> str:
        """Its size in a few words."""
        return f"{len(self.widths)} widths, {len(self.rates)} learning rates, {len(tuple(self.seeds))} seeds"

    @property
    def rules(self) -> dict[str, Parametrisation]:
        """The parametrisations by name, the base's own first."""
        own = self.base.model.parametrisation
        return {name_of(rule): rule for rule in (own, *([Parametrisation()] if self.twin else []))}

    @property
    def arms(self) -> list[Arm]:
        """All arms: rates within widths within parametrisations."""
        return [Arm(rule, width, rate) for rule in self.rules for width in self.widths for rate in self.rates]

    def _experiment(self, arm: Arm) -> Experiment:
        wide = widened(self.base.model, arm.width, self.grows)
        optimizer = with_rate(self.base.optimizer, arm.rate)
        changes = dict(model=replace(wide, parametrisation=self.rules[arm.rule]), optimizer=optimizer, name=arm.name)
        return self.base.replace(LEAN).replace(changes)

    def trials(self, results: Sequence[Result] = ()) -> list[Trial]:
        """Every arm at every seed, seed by seed."""
        return every_seed({arm.name: self._experiment(arm) for arm in self.arms}, self.seeds)

    # ------------------------------------------------------------ for the report

    def analyse(self, results: Sequence[Result]) -> "list[LrTransfer]":
        """Of each parametrisation of which a run has finished, where the best rates are and whether they transfer.
        Raises ValueError where runs have finished and none has the measure."""
        from lm.study.optimum import lr_transfer
        from lm.study.statistics import measured

        reached = measured(results, self.measure)
        ran = [(arm, reached[arm.name]) for arm in self.arms if arm.name in reached]
        known = {(arm.rule, arm.width) for arm, one in ran if one.values}
        by_rule: dict[str, dict[tuple[int, float], Measured]] = {}
        for arm, one in ran:
            if (arm.rule, arm.width) in known and (one.values or one.lost):  # a rate at which all diverged is too large
                by_rule.setdefault(arm.rule, {})[arm.width, arm.rate] = one
        return [lr_transfer(rule, losses, self.tolerance, self.measure) for rule, losses in by_rule.items()]

    def findings(self, results: Sequence[Result]) -> "Findings":
        """What it adds to the report of a study: whether the best rate transfers, a sentence a parametrisation."""
        from lm.study import optimum

        return optimum.findings(self.analyse(results), self.measure)


def with_rate(optimizer: Optimizer, rate: float) -> Optimizer:
    """`optimizer` with the peak learning `rate`, its other rates changed by the same factor. Raises ValueError where it
    has no rate yet."""
    if not optimizer.learning_rate:
        raise ValueError("optimizer.learning_rate=0: expected a rate above 0, to which its others stand in proportion")
    factor = rate / optimizer.learning_rate
    others = [f.name for f in fields(optimizer) if f.name.endswith("_learning_rate")]
    return replace(optimizer, learning_rate=rate, **{name: factor * getattr(optimizer, name) for name in others})
