"""Runs that differ only in numbers, in one process and one compiled program.

What differs between them (learning rates, decay, betas, the schedule and its length, the seed) becomes data of the
step: an optimizer's numbers are arguments, its schedule a table of heights by step. The runs take their steps in turn,
each an ordinary run in its own folder, that ends, fails or goes on by itself; start-up and compilation are paid once.
Mixtures and initial scales are no part of the step, and may differ too.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import hardware, value
from lm.data.cache import cache_dir
from lm.experiment import EVERY, INERT, Experiment
from lm.monitor import Bar
from lm.run import Interrupted, Run, listening
from lm.study.trial import DIVERGED, FAILED, Trial, leave_word
from lm.train.loop import NotFinite
from lm.train.step import Step, compiled, one_step, under

MOST = 16  # runs in a process: each has its state in memory
HOST = {
    *INERT,
    *EVERY,
    "steps",
    "seed",
    "data",
    "embedding",
    "eval_tokens",
    "evaluations",
}  # fields that the step does not see


def key(experiment: Experiment) -> str:
    """Text that experiments share exactly when one program serves them: their plain value less what may differ."""
    data = {name: field for name, field in value.plain(experiment).items() if name not in HOST}
    data["model"] = {**data["model"], "init_scale": None}
    rule = {name: bool(x) if isinstance(x, float) else x for name, x in data["optimizer"].items()}  # 0 is no such part
    data["optimizer"] = {**rule, "schedule": None}
    return json.dumps(data, sort_keys=True)


def groups(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials by the program that they share, in their order, at most MOST together."""
    by_key: dict[str, list[Trial]] = {}
    for trial in trials:
        by_key.setdefault(key(trial.experiment), []).append(trial)
    return [same[i : i + MOST] for same in by_key.values() for i in range(0, len(same), MOST)]


class Table:
    """A schedule whose heights at each step, relative to the peak, are data."""

    def __init__(self, heights: Any):
        self.heights = heights

    def build(self, peak: Any, total_steps: int) -> Any:
        """step -> learning rate."""
        return lambda step: peak * self.heights[jnp.minimum(step, len(self.heights) - 1)]


class Program:
    """The step of all `experiments`: what differs between them is its third argument."""

    def __init__(self, experiments: Sequence[Experiment], run: Run):
        self.first, self.run = experiments[0], run
        optimizers = [e.optimizer for e in experiments]
        floats = [
            f.name for f in dataclasses.fields(optimizers[0]) if isinstance(getattr(optimizers[0], f.name), float)
        ]
        self.varied = [name for name in floats if len({getattr(o, name) for o in optimizers}) > 1]
        self.steps = max(e.steps for e in experiments)
        self.scheduled = len({(value.fingerprint(e.optimizer.schedule), e.steps) for e in experiments}) > 1
        self.jitted = compiled(self._step, run.task, run.optimizer, run.mesh, self.first.ema)

    def _step(self, state: Any, batch: Any, data: Mapping[str, Any]) -> Any:
        e, axes = self.first, self.run.task.axes()
        schedule: Any = Table(data["heights"]) if self.scheduled else e.optimizer.schedule
        optimizer = dataclasses.replace(e.optimizer, **data["numbers"], schedule=schedule).build(self.steps, axes)
        return one_step(self.run.task, optimizer, e.accumulate, e.ema)(state, batch, data["seed"])

    def step(self, experiment: Experiment) -> Step:
        """The step of one of the experiments."""
        data: dict[str, Any] = {"seed": np.uint32(experiment.seed)}
        data["numbers"] = {name: np.float32(getattr(experiment.optimizer, name)) for name in self.varied}
        if self.scheduled:
            height = experiment.optimizer.schedule.build(1.0, experiment.steps)
            heights = np.asarray(jax.vmap(height)(jnp.arange(experiment.steps)), np.float32)
            data["heights"] = np.pad(heights, (0, self.steps - len(heights)))
        return under(self.run.mesh, self.jitted, data)


class Spoken(Bar):
    """In the place of a bar: what a run says, under its name."""

    def __init__(self, name: str, total_steps: int, start_step: int):
        self.name = name

    def __enter__(self) -> "Spoken":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, *_: object) -> None:
        """Nothing: the study's table shows it."""

    def say(self, what: Any) -> None:
        """Print a text."""
        print(f"{self.name}: {what}", flush=True)


def train(experiments: Sequence[Experiment], folders: Sequence[Path]) -> None:
    """Train all `experiments`, whose `key` is one, each in its folder; what cannot go on leaves word there.

    Raises Interrupted after SIGTERM or SIGINT, when all have written a checkpoint."""
    hardware.split_cpu(experiments[0].compute.devices)
    hardware.keep_compiled(cache_dir())
    with listening() as asked:
        courses = dict(_courses(experiments, folders, asked))
        print(f"{len(courses)} runs in one program, in turn", flush=True)
        stopped: Interrupted | None = None
        while courses:
            for folder, course in list(courses.items()):
                try:
                    next(course)
                    continue
                except StopIteration:
                    pass
                except Interrupted as error:
                    stopped = error
                except NotFinite as error:
                    leave_word(folder, DIVERGED, str(error))
                except (ValueError, OSError) as error:
                    leave_word(folder, FAILED, str(error).splitlines()[0])
                del courses[folder]
    if stopped:
        raise stopped


def _courses(
    experiments: Sequence[Experiment], folders: Sequence[Path], asked: list[int]
) -> Iterator[tuple[Path, Iterator[int]]]:
    """Each run that can begin, and its course."""
    program: Program | None = None
    for experiment, folder in zip(experiments, folders, strict=True):
        try:
            run = Run(experiment, folder)
        except (ValueError, OSError) as error:
            leave_word(folder, FAILED, str(error).splitlines()[0])
            continue
        program = program or Program(experiments, run)
        run.step, run.evaluate_step = program.step(experiment), program.run.evaluate_step
        yield folder, run.course(asked, partial(Spoken, f"{folder.parent.name}/{folder.name}"))
