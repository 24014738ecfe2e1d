"""A scaling ladder: shapes of a model trained with the same FLOPs, rung by rung, and the law that their losses obey.

    ladder = Ladder(base, compute=(1e13, 3e13, 1e14), shapes=(dict(model=dict(layers=2, width=64)), ...))

Each shape is trained at each budget for as many steps as the budget pays. The law L(N, D) is fitted to all budgets but
the largest, and has to predict the losses there: `analyse` scores it (score.py). See fit.py for the fits.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

from lm import value
from lm.experiment import Experiment
from lm.model import count
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.transformer import Transformer
from lm.study.ablation import Changes
from lm.study.trial import LEAN, MISSING, STOPPED, Result, Trial, distinct_seeds, every_seed, step_flops
from lm.train.optim import is_table
from lm.value import suggest

if TYPE_CHECKING:
    from lm.study.report import Findings
    from lm.study.score import Point, Scaling

MEASURES = ("loss", "bits_per_byte")  # what falls towards a floor above zero, as the law does


def body(cfg: ModelConfig) -> int:
    """Parameters without embeddings: of tokens and positions, and without the head (Kaplan et al. 2020, 2001.08361)."""
    model = Transformer(cfg, Compute().resolve("cpu"))
    axes = jax.tree.leaves(model.axes(), is_leaf=lambda x: isinstance(x, tuple))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(model.shapes())]
    return sum(n for n, names in zip(sizes, axes, strict=True) if "vocab" not in names and not is_table(names))


PARAMETERS: Mapping[str, Callable[[ModelConfig], int]] = {"all": count.parameters, "body": body}


@dataclass(frozen=True)
class Ladder:
    """`base` in every one of `shapes` (nested changes of it) at every budget of `compute` (model FLOPs of training),
    for the nearest whole number of steps that the budget pays.

    N in L(N, D) is `parameters`: "all" of them, as in Hoffmann et al. 2022 (2203.15556), or the "body" without
    embeddings, as in Kaplan et al. 2020 (2001.08361); Pearce and Song 2024 (2406.12907) show that this, at small sizes,
    explains most of what the two papers differ by. `measure`: "loss", "bits_per_byte", or one of them of a source."""

    base: Experiment
    compute: tuple[float, ...]
    shapes: tuple[Changes, ...]
    seeds: Iterable[int] = (0,)
    measure: str = "loss"
    parameters: str = "all"
    bootstrap: int = 200

    def __post_init__(self) -> None:
        for name, values in (("compute", self.compute), ("shapes", self.shapes), ("seeds", distinct_seeds(self.seeds))):
            object.__setattr__(self, name, tuple(values))
        if not self.compute or not all(0 < c < math.inf for c in self.compute):
            raise ValueError(f"compute={self.compute}: expected budgets in model FLOPs, above 0")
        if not self.shapes:
            raise ValueError("shapes=(): expected at least one, for instance dict(model=dict(layers=2, width=64))")
        if self.parameters not in PARAMETERS:
            raise ValueError(f"parameters={self.parameters!r}: {suggest(self.parameters, PARAMETERS)}")
        if self.measure.rpartition("/")[2] not in MEASURES:
            raise ValueError(f"measure={self.measure!r}: expected {' or '.join(MEASURES)}, or SOURCE/ and one of them")
        if self.bootstrap < 100:
            raise ValueError(f"bootstrap={self.bootstrap}: expected at least 100 draws for an interval of 95%")
        for shape in self.shapes:
            if taken := [path for path in value.paths(shape) if path in ("steps", "seed", "name")]:
                raise ValueError(f"a shape sets {taken[0]}: steps follow from the budget, the study sets seed and name")
        names = [arm_name(c, shape) for c in self.compute for shape in self.shapes]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two arms are named {twice[0]!r}: two budgets or shapes are the same, or nearly so")

    @property
    def summary(self) -> str:
        """Its size in a few words."""
        return f"{len(self.compute)} budgets, {len(self.shapes)} shapes"

    @functools.cached_property
    def arms(self) -> dict[str, tuple[float, Experiment]]:
        """Each arm's budget and experiment. Raises ValueError for a budget too small for one step."""
        return {arm_name(c, shape): (c, self._arm(c, shape)) for c in self.compute for shape in self.shapes}

    def _arm(self, flops: float, shape: Changes) -> Experiment:
        name = arm_name(flops, shape)
        try:
            arm = self.base.replace(shape)
            step = step_flops(arm)
            if round(flops / step) < 1:
                raise ValueError(
                    f"a budget of {flops:.3g} FLOPs is too small for one step of {step:.3g}: raise it, or lower "
                    "batch_tokens"
                )
            return arm.replace(LEAN, steps=round(flops / step), name=name)
        except ValueError as error:
            raise ValueError(f"arm {name!r}: {error}") from None

    def trials(self, results: Sequence[Result] = ()) -> list[Trial]:
        """Every arm at every seed, seed by seed, the budgets as declared."""
        return list(self._trials)

    @functools.cached_property
    def _trials(self) -> list[Trial]:
        return every_seed({name: arm for name, (_, arm) in self.arms.items()}, self.seeds)

    # ------------------------------------------------------------ for the report

    def points(self, results: Sequence[Result]) -> "list[Point]":
        """A point an arm that has finished: the mean over its seeds. Raises ValueError where runs have finished, and
        none has the measure."""
        from lm.study.score import Point
        from lm.study.statistics import measured

        points, reached = [], measured(results, self.measure)
        for name, (flops, arm) in self.arms.items():
            if (one := reached.get(name)) and one.values:
                size, tokens = PARAMETERS[self.parameters](arm.model), arm.steps * arm.batch_tokens
                points.append(Point(name, flops, size, tokens, one.mean, len(one.values), flops == max(self.compute)))
        return points

    def analyse(self, results: Sequence[Result]) -> "Scaling":
        """What the runs show of the law. What they leave open is None, and a fault says why. Raises ValueError where no
        run has finished, or none has the measure."""
        from lm.study.score import score

        points = self.points(results)
        if not points:
            raise ValueError("no run has finished")
        unfinished = [r for r in results if not r.finished and r.status not in (MISSING, STOPPED)]
        lost = tuple(f"{r.trial.arm}, seed {r.trial.seed}: {r.status}" for r in unfinished)
        return score(points, self.measure, self.parameters, self.bootstrap, lost)

    def findings(self, results: Sequence[Result]) -> "Findings":
        """What a ladder adds to the report of a study: the score of its prediction first."""
        from lm.study import report, score

        try:
            analysis = self.analyse(results)
        except ValueError as error:
            return report.Findings(f"No conclusion yet: {error}.")
        return score.findings(analysis)


def arm_name(flops: float, shape: Changes) -> str:
    """The folder's name of an arm: its budget and what its shape sets, as in 1e15-layers2-width64."""
    return "-".join([_budget(flops), *_parts(shape)]) if shape else f"{_budget(flops)}-base"


def _budget(flops: float) -> str:
    mantissa, _, exponent = f"{flops:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _parts(shape: Changes) -> list[str]:
    parts = []
    for name, new in shape.items():
        if isinstance(new, Mapping):
            parts += _parts(new)
        else:
            plain = isinstance(new, (int, float, str, bool)) or new is None
            parts.append(re.sub(r"[^\w.+-]", "", f"{name}{new if plain else type(new).__name__}"))
    return parts
