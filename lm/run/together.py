"""Runs that differ only in numbers, in one process and one compiled program.

What differs between them (learning rates, decay, betas, the schedule and its length, the seed) is data of the step
(lm/train/program.py). Each is an ordinary run in its own folder, that ends, fails or continues by itself; start-up and
compilation are paid once. Mixtures and initial scales are no part of the step, and may differ too.

The runs go in turn (turns), each to its next evaluation, with the bits that they would have alone; or side by side
under vmap (vmap, lm/run/vmapped.py), with the same numbers but for rounding. On CPUs turns are faster; elsewhere both
are measured. Short runs so end one by one, and only one of them is in memory at a time.
"""

import contextlib
import json
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm import value
from lm.experiment import EVERY, INERT, Experiment
from lm.machine import hardware, locks
from lm.machine.cache import cache_dir
from lm.machine.monitor import Bar
from lm.machine.processes import catch_signals
from lm.run.course import Interrupted, Run
from lm.run.outcome import DIVERGED, FAILED, PRUNED, STOP, write_outcome
from lm.run.vmapped import Vmapped, faster, obstacle
from lm.train.loop import NotFinite

MOST = 16  # runs in a process: each has its state in memory
HOW = ("auto", "turns", "vmap")
PROGRAM = "one program: "  # what begins the line of the log that says how the runs go
Steps = Generator[int, None, None]
HOST = {  # fields that the step does not read
    *INERT,
    *EVERY,
    "steps",
    "seed",
    "data",
    "embedding",
    "start",
    "eval_tokens",
    "evaluations",
}


def program_key(experiment: Experiment) -> str:
    """Text that experiments share exactly when one program serves them: their plain value less what may differ."""
    data = {name: field for name, field in value.plain(experiment).items() if name not in HOST}
    data["model"] = {**data["model"], "init_scale": None}
    data["batches"] = value.plain(experiment.data.packing)  # what arrays they have
    rule = {name: bool(x) if isinstance(x, float) else x for name, x in data["optimizer"].items()}  # 0 is no such part
    data["optimizer"] = {**rule, "schedule": None}
    return json.dumps(data, sort_keys=True)


class LinesOnly(Bar):
    """In place of a progress bar: the lines that a run prints, after its name."""

    def __init__(self, name: str, total_steps: int, start_step: int):
        self.name = name

    def __enter__(self) -> "LinesOnly":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, *_: object) -> None:
        """Nothing: who started the runs shows their progress."""

    def note(self, what: str) -> None:
        """Nothing, as `update`."""

    def say(self, what: Any) -> None:
        """Print a line."""
        print(f"{self.name}: {what}", flush=True)


def train(experiments: Sequence[Experiment], folders: Sequence[Path], how: str = "auto") -> None:
    """Train all `experiments`, which share a `program_key`, each in its folder; a run that cannot go on has its outcome
    written there. They go in turn or side by side, as `how` (one of HOW) says; a line that begins with PROGRAM reports
    the choice.

    Raises Interrupted after SIGTERM or SIGINT, when all have written a checkpoint."""
    hardware.set_cpu_devices(experiments[0].compute.devices)
    hardware.use_compilation_cache(cache_dir())
    hardware.run_steps_in_turn()
    hardware.check_backend()
    with contextlib.ExitStack() as stack, catch_signals() as signals:
        for folder in folders:  # a process that was left behind may still be at work there
            stack.enter_context(locks.exclusive(folder, wait=True))
            locks.sign(folder)
        began = time.time()
        runs = list(_prepare(experiments, folders))
        for run in runs:  # each has its equal share of the time until here
            run.exclude_time(time.time() - run.time.began - (time.time() - began) / len(runs))
        vmapped = plan_execution(runs, how) if len(runs) > 1 else None
        steps: dict[Run, Steps] = {}
        for run in runs:
            bar = partial(LinesOnly, f"{run.folder.parent.name}/{run.folder.name}")
            steps[run] = run.steps(signals, bar, vmapped.slot(run) if vmapped else None)
        interrupted: list[Interrupted] = []
        while steps:
            for run in list(steps):
                began = time.time()
                continues = _take_turn(run, steps[run], interrupted, whole=not vmapped)
                _charge_wall_time(None if vmapped and continues else run, steps, time.time() - began)
                if not continues:
                    del steps[run]
            if vmapped:
                began = time.time()
                vmapped.run_requested_step()
                _charge_wall_time(None, steps, time.time() - began)
    if interrupted:
        raise interrupted[-1]


def _take_turn(run: Run, steps: Steps, interrupted: list[Interrupted], whole: bool) -> bool:
    """Whether a run continues after its turn: the steps to its next evaluation, that, and one step more, or where the
    turn is not `whole` one step. If not, its outcome is written, or it is added to `interrupted`."""
    folder, every, began = run.folder, run.experiment.eval_every_steps, False
    try:
        for n in steps:
            if (folder / STOP).exists():
                steps.close()
                _end(folder, PRUNED, "stopped by the study")
                return False
            if not whole or began and (n - 1) % every == 0:
                return True
            began = True
    except Interrupted as error:
        interrupted.append(error)
    except NotFinite as error:
        _end(folder, DIVERGED, str(error))
    except (ValueError, OSError) as error:
        _end(folder, FAILED, str(error))
    return False


def _charge_wall_time(whose: Run | None, runs: Iterable[Run], seconds: float) -> None:
    """Count the last seconds to one run, or to all in equal shares: side by side they wait for one another."""
    runs = list(runs)
    for run in runs:
        if run is not whose:
            run.exclude_time(seconds * (1 - 1 / len(runs)) if whose is None else seconds)


def _end(folder: Path, status: str, reason: str) -> None:
    """Write the outcome of a run that ends here, and a line to the log."""
    first = next(iter(reason.splitlines()), "without a word")
    write_outcome(folder, status, first)
    print(f"{folder.parent.name}/{folder.name}: {status}, {first}", flush=True)


def _prepare(experiments: Sequence[Experiment], folders: Sequence[Path]) -> Iterator[Run]:
    """Each run that can begin, all with the program of the first."""
    first: Run | None = None
    for experiment, folder in zip(experiments, folders, strict=True):
        try:
            run = Run(experiment, folder, like=first)
        except (ValueError, OSError) as error:
            _end(folder, FAILED, str(error))
            continue
        first = first or run
        yield run


def plan_execution(runs: Sequence[Run], how: str) -> Vmapped | None:
    """The stack in which the runs go side by side; None where they take turns. Raises ValueError where `how` is vmap
    and they cannot."""
    hindered = obstacle(runs)
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
