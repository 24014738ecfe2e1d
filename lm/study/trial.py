"""One run of a study: which arm and seed it is, what experiment, and what came of it.

Each is an ordinary run in `runs/ARM/SEED/` of the study's folder: finished when its folder says so of this very
experiment, whoever ran it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lm import value
from lm.bounds import Seed, require
from lm.experiment import Experiment, changed
from lm.model import count
from lm.page.run_record import RunRecord, read_json
from lm.run.folder import has_begun
from lm.run.outcome import DIVERGED, OUTCOME, PRUNED

FINISHED, MISSING, STOPPED = "finished", "missing", "stopped"  # stopped: under way, or it can go on
EVAL, EXTRA = "eval", "evaluations"  # what the names of measures begin with in metrics.jsonl
# a study compares numbers: its runs keep one checkpoint, to go on from, and write no samples
LEAN: Mapping[str, Any] = {"keep_last": 1, "keep_best": 0, "prompts": ()}
Resized = Mapping[str, tuple[Any, Any]]  # path -> (as declared, as run)


@dataclass(frozen=True)
class Trial:
    """What is run for `arm` at `seed`, and what was `resized` to match the arms."""

    arm: str
    seed: int
    experiment: Experiment
    resized: Resized = field(default_factory=dict)

    def folder(self, study: Path) -> Path:
        """Its run's folder in that of the study."""
        return study / "runs" / self.arm / str(self.seed)


@dataclass(frozen=True)
class Result:
    """What came of a trial: a `status` and, where it is not finished, the `reason`.

    `measures` of the last evaluation: loss, the mean over the sources, bits_per_byte likewise where they have it, and
    SOURCE/MEASURE. `curve` (step, loss) pairs of training, `evaluations` (step, measures) on the way. `seconds` are
    wall time, 0 where unknown."""

    trial: Trial
    status: str
    reason: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    evaluations: tuple[tuple[int, Mapping[str, float]], ...] = ()
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """(arm, seed)."""
        return self.trial.arm, self.trial.seed

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    @property
    def over(self) -> bool:
        """Whether there is nothing left to run: it is finished, or would end the same way again."""
        return self.status in (FINISHED, DIVERGED, PRUNED)

    @property
    def tokens(self) -> int:
        """Tokens that a whole run trains on."""
        return self.trial.experiment.steps * self.trial.experiment.batch_tokens

    @property
    def flops(self) -> float:
        """Those of a whole run's training, as the model counts them."""
        return training_flops(self.trial.experiment)

    @property
    def parameters(self) -> int:
        return count.parameters(self.trial.experiment.model)

    def until(self, step: int) -> "Result":
        """As it stands where the study stops it, after `step`."""
        curve = tuple(point for point in self.curve if point[0] <= step)
        evaluations = tuple(one for one in self.evaluations if one[0] <= step)
        reason = f"stopped after step {step}: worse than half of the earlier runs were there"
        return Result(self.trial, PRUNED, reason, curve=curve, evaluations=evaluations)


def distinct_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """`seeds` as a tuple. Raises ValueError where there are none, or one is no seed or there twice."""
    listed = tuple(seeds)
    for seed in listed:
        require(Seed, seeds=seed)
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"seeds={listed}: expected different numbers, at least 0, for instance range(3)")
    return listed


def every_seed(arms: Mapping[str, Experiment], seeds: Iterable[int]) -> list[Trial]:
    """Every arm at every seed, seed by seed: what is finished early on has all arms in it."""
    return [
        Trial(name, seed, arm if arm.seed == seed else arm.replace(seed=seed))
        for seed in seeds
        for name, arm in arms.items()
    ]


def training_flops(experiment: Experiment) -> float:
    """Model FLOPs of the whole run."""
    return step_flops(experiment) * experiment.steps


def step_flops(experiment: Experiment) -> float:
    """Model FLOPs of one step."""
    return experiment.flops_per_token * experiment.batch_tokens


# ---------------------------------------------------------------- its folder


def read_result(trial: Trial, study: Path) -> Result:
    """What the folder of `trial` says. Raises ValueError where it holds the run of another experiment that has taken a
    step."""
    folder = trial.folder(study)
    if not (folder / "experiment.json").exists():
        return Result(trial, MISSING)
    record, outcome = RunRecord(folder), read_json(folder / OUTCOME, {})
    if different := changed(record.experiment, value.plain(trial.experiment)):
        if not has_begun(folder):
            return Result(trial, MISSING)
        path, old, new = different[0]
        raise ValueError(
            f"{folder} holds a run of a different experiment ({path} was {old!r}, is {new!r}): choose another "
            "--workdir for the study, or remove that folder"
        )
    curve = tuple((line["step"], line["loss"]) for line in record.training)
    evaluations = tuple((line["step"], measures(line)) for line in record.evaluations)
    result = Result(trial, outcome.get("status", STOPPED), outcome.get("reason", ""), {}, curve, evaluations)
    seconds = float(record.about.get("seconds") or 0.0)
    if not record.finished:
        return replace(result, seconds=seconds)
    last = evaluations[-1][1] if evaluations else {}
    return replace(result, status=FINISHED, reason="", measures=last, seconds=seconds)


def measures(line: Mapping[str, Any]) -> dict[str, float]:
    """The measures of one line of metrics.jsonl, and the sources' mean bits per byte. SOURCE/MEASURE are the run's own;
    NAME/SOURCE/MEASURE, and NAME/MEASURE for the means, those of its extra evaluations."""
    named: dict[str, float] = {}
    bits: dict[str, list[float]] = {}
    for key, number in line.items():
        kind, _, name = key.partition("/")
        if number is None or kind not in (EVAL, EXTRA):
            continue
        named[name] = number
        if name.endswith("/bits_per_byte"):
            over = f"{name.partition('/')[0]}/bits_per_byte" if kind == EXTRA else "bits_per_byte"
            bits.setdefault(over, []).append(number)
    return named | {name: sum(values) / len(values) for name, values in bits.items()}
