"""One run of a study: which arm and seed it is, what experiment, and what came of it.

Each is an ordinary run in `runs/ARM/SEED/` of the study's folder: finished when its folder says so of this very
experiment, whoever ran it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lm import value
from lm.experiment import Experiment, changed
from lm.machine.monitor import read_metrics
from lm.model import count

FINISHED, MISSING, STOPPED = "finished", "missing", "stopped"  # stopped: under way, or it can go on
FAILED, DIVERGED, PRUNED = "failed", "diverged", "pruned"  # what a run's OUTCOME says
EVALUATED = EVAL, FURTHER = "eval", "evaluations"  # what the names of measures begin with in metrics.jsonl
OUTCOME = "outcome.json"  # in a run's folder: why it ended before its end
SAID = "one program: "  # what begins the line of a process's log that says how its runs go
STOP = "stop"  # in a run's folder, while it runs: the study asks it to end
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
    SOURCE/MEASURE. `curve` (step, loss) pairs of training, `evaluations` (step, measures) on the way. `flops` are those
    of training as the model counts them; `seconds` are wall time, 0 where unknown."""

    trial: Trial
    status: str
    reason: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    evaluations: tuple[tuple[int, Mapping[str, float]], ...] = ()
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    @property
    def tokens(self) -> int:
        """Tokens that a whole run trains on."""
        return self.trial.experiment.steps * self.trial.experiment.batch_tokens

    @property
    def flops(self) -> float:
        return training_flops(self.trial.experiment)

    @property
    def parameters(self) -> int:
        return count.parameters(self.trial.experiment.model)


def distinct_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """`seeds` as a tuple. Raises ValueError where there are none, or one is negative or there twice."""
    listed = tuple(seeds)
    if not listed or min(listed) < 0 or len(set(listed)) < len(listed):
        raise ValueError(f"seeds={listed}: expected different numbers, at least 0, for instance range(3)")
    return listed


def every_seed(
    arms: Mapping[str, Experiment], seeds: Iterable[int], resized: Mapping[str, Resized] | None = None
) -> list[Trial]:
    """Every arm at every seed, seed by seed: what is finished early on has all arms in it."""
    by_arm = resized or {}
    return [
        Trial(name, seed, arm.replace(seed=seed), by_arm.get(name, {})) for seed in seeds for name, arm in arms.items()
    ]


def training_flops(experiment: Experiment) -> float:
    """Model FLOPs of the whole run."""
    return step_flops(experiment) * experiment.steps


def step_flops(experiment: Experiment) -> float:
    """Model FLOPs of one step."""
    return float(count.flops_per_token(experiment.model, experiment.length)) * experiment.batch_tokens


def read(trial: Trial, study: Path) -> Result:
    """What the folder of `trial` tells. Raises ValueError where it holds the run of another experiment."""
    folder = trial.folder(study)
    declared, about = _json(folder / "experiment.json"), _json(folder / "about.json")
    if not declared:
        return Result(trial, MISSING)
    different = changed(declared["value"], value.plain(trial.experiment))
    if different:
        path, old, new = different[0]
        raise ValueError(
            f"{folder} holds a run of a different experiment ({path} was {old!r}, is {new!r}): choose another "
            "--workdir for the study, or remove that folder"
        )
    lines = read_metrics(folder)
    curve = tuple((line["step"], line["loss"]) for line in lines if line.get("loss") is not None)
    evaluations = tuple((line["step"], measures(line)) for line in lines if "eval/loss" in line)
    outcome = _json(folder / OUTCOME)
    if about.get("finished"):
        status, reason = FINISHED, ""
    else:
        status, reason = outcome.get("status", STOPPED), outcome.get("reason", "")
    last = evaluations[-1][1] if evaluations and status == FINISHED else {}
    return Result(trial, status, reason, last, curve, evaluations, float(about.get("seconds") or 0.0))


def stopped(result: Result, step: int) -> Result:
    """`result` as it stands where the study stops it, after `step`."""
    curve = tuple(point for point in result.curve if point[0] <= step)
    way = tuple(one for one in result.evaluations if one[0] <= step)
    reason = f"stopped after step {step}: worse than half of the earlier runs were there"
    return replace(result, status=PRUNED, reason=reason, measures={}, curve=curve, evaluations=way, seconds=0.0)


def leave_word(folder: Path, status: str, reason: str) -> None:
    """Write why the run in `folder` ended, whole or not at all."""
    part = folder / f".{OUTCOME}.part"
    part.write_text(json.dumps({"status": status, "reason": reason}) + "\n", encoding="utf-8")
    part.replace(folder / OUTCOME)


def measures(line: Mapping[str, Any]) -> dict[str, float]:
    """The measures of one line of metrics.jsonl, and the sources' mean bits per byte. SOURCE/MEASURE are the run's own;
    NAME/SOURCE/MEASURE, and NAME/MEASURE for the means, those of its extra evaluations."""
    found: dict[str, float] = {}
    bits: dict[str, list[float]] = {}
    for key, value_ in line.items():
        kind, _, name = key.partition("/")
        if value_ is None or kind not in EVALUATED:
            continue
        found[name] = value_
        if name.endswith("/bits_per_byte"):
            over = f"{name.partition('/')[0]}/bits_per_byte" if kind == FURTHER else "bits_per_byte"
            bits.setdefault(over, []).append(value_)
    return found | {name: sum(values) / len(values) for name, values in bits.items()}


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
