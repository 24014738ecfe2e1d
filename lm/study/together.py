"""Runs that differ only in numbers, in one process and one compiled program.

What differs between them (learning rates, decay, betas, the schedule and its length, the seed) is data of the step
(lm/train/program.py). Each is an ordinary run in its own folder, that ends, fails or goes on by itself; start-up and
compilation are paid once. Mixtures and initial scales are no part of the step, and may differ too.

The runs take their steps in turn (turns), with the bits that they would have alone; or side by side under vmap (vmap,
lm/study/vmapped.py), with the same numbers but for rounding. On CPUs turns are faster; elsewhere both are measured.
"""

import json
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm import value
from lm.experiment import EVERY, INERT, Experiment
from lm.machine import hardware
from lm.machine.cache import cache_dir
from lm.machine.monitor import Bar
from lm.machine.processes import catch_signals
from lm.run.course import Interrupted, Run
from lm.study.trial import DIVERGED, FAILED, PRUNED, STOP, Trial, write_outcome
from lm.study.vmapped import Vmapped, faster, unable
from lm.train.loop import NotFinite

MOST = 16  # runs in a process: each has its state in memory
HOW = ("auto", "turns", "vmap")
PROGRAM = "one program: "  # what begins the line of a process's log that says how its runs go
Course = Generator[int, None, None]
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
    data["batches"] = value.plain(experiment.data.packing)  # what arrays they have
    rule = {name: bool(x) if isinstance(x, float) else x for name, x in data["optimizer"].items()}  # 0 is no such part
    data["optimizer"] = {**rule, "schedule": None}
    return json.dumps(data, sort_keys=True)


def groups(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials by the program that they share, in their order, at most MOST together."""
    by_key: dict[str, list[Trial]] = {}
    for trial in trials:
        by_key.setdefault(key(trial.experiment), []).append(trial)
    return [same[i : i + MOST] for same in by_key.values() for i in range(0, len(same), MOST)]


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


def train(experiments: Sequence[Experiment], folders: Sequence[Path], how: str = "auto") -> None:
    """Train all `experiments`, whose `key` is one, each in its folder; what cannot go on leaves word there. `how`, one
    of HOW: in turn, side by side, or as is faster; a line that begins with PROGRAM tells.

    Raises Interrupted after SIGTERM or SIGINT, when all have written a checkpoint."""
    hardware.set_cpu_devices(experiments[0].compute.devices)
    hardware.use_compilation_cache(cache_dir())
    with catch_signals() as asked:
        began = time.time()
        runs = list(_runs(experiments, folders))
        for run in runs:  # each has its equal share of what it took until here
            run.exclude_time(time.time() - run.began - (time.time() - began) / len(runs))
        whole = beside(runs, how) if len(runs) > 1 else None
        courses: dict[Run, Course] = {}
        for run in runs:
            spoken = partial(Spoken, f"{run.folder.parent.name}/{run.folder.name}")
            courses[run] = run.steps(asked, spoken, whole.seat(run) if whole else None)
        stopped: list[Interrupted] = []
        while courses:
            for run in list(courses):
                began = time.time()
                goes_on = _goes_on(run.folder, courses[run], stopped)
                _charge(None if whole and goes_on else run, courses, time.time() - began)
                if not goes_on:
                    del courses[run]
            if whole:
                began = time.time()
                whole.go()
                _charge(None, courses, time.time() - began)
    if stopped:
        raise stopped[-1]


def _goes_on(folder: Path, course: Course, stopped: list[Interrupted]) -> bool:
    """Whether a run goes on after its next step; why not is left in its folder, or an interruption in `stopped`."""
    try:
        next(course)
        if not (folder / STOP).exists():
            return True
        course.close()
        _lost(folder, PRUNED, "stopped by the study")
    except StopIteration:
        pass
    except Interrupted as error:
        stopped.append(error)
    except NotFinite as error:
        _lost(folder, DIVERGED, str(error))
    except (ValueError, OSError) as error:
        _lost(folder, FAILED, str(error))
    return False


def _charge(whose: Run | None, runs: Iterable[Run], seconds: float) -> None:
    """The last seconds are those of one run, or of all in equal shares: side by side they wait for one another."""
    runs = list(runs)
    for run in runs:
        if run is not whose:
            run.exclude_time(seconds * (1 - 1 / len(runs)) if whose is None else seconds)


def _lost(folder: Path, status: str, reason: str) -> None:
    """Leave word of a run that ends here, in its folder and in the log."""
    first = next(iter(reason.splitlines()), "without a word")
    write_outcome(folder, status, first)
    print(f"{folder.parent.name}/{folder.name}: {status}, {first}", flush=True)


def _runs(experiments: Sequence[Experiment], folders: Sequence[Path]) -> Iterator[Run]:
    """Each run that can begin, all with the program of the first."""
    first: Run | None = None
    for experiment, folder in zip(experiments, folders, strict=True):
        try:
            run = Run(experiment, folder, like=first)
        except (ValueError, OSError) as error:
            _lost(folder, FAILED, str(error))
            continue
        first = first or run
        yield run


def beside(runs: Sequence[Run], how: str) -> Vmapped | None:
    """What takes the runs on side by side; None, where they take turns. Raises ValueError where `how` is vmap and they
    cannot."""
    hindered = unable(runs)
    if how == "vmap" and hindered:
        raise ValueError(f"--together vmap: {hindered}; --together turns can")
    side_by_side, why = how == "vmap", "as asked"
    if how == "auto" and hindered:
        why = hindered
    elif how == "auto" and runs[0].prepared.mesh.devices.flat[0].platform == "cpu":
        why = "faster on CPUs"
    elif how == "auto":
        side_by_side, why = faster(runs)
    print(f"{PROGRAM}{len(runs)} runs, {'side by side' if side_by_side else 'in turn'} ({why})", flush=True)
    return Vmapped(runs) if side_by_side else None
