"""Runs that differ only in numbers, in one process and one compiled program.

What differs between them (learning rates, decay, betas, the schedule and its length, the seed) is data of the step
(lm/train/program.py). The runs take their steps in turn, each an ordinary run in its own folder, that ends, fails or
goes on by itself, with the bits that it would have alone; start-up and compilation are paid once. Mixtures and initial
scales are no part of the step, and may differ too.
"""

import json
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm import hardware, value
from lm.data.cache import cache_dir
from lm.experiment import EVERY, INERT, Experiment
from lm.monitor import Bar
from lm.run import Interrupted, Run, listening
from lm.study.trial import DIVERGED, FAILED, PRUNED, STOP, Trial, leave_word
from lm.train.loop import NotFinite

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
        if len(courses) > 1:
            print(f"{len(courses)} runs in one program, in turn", flush=True)
        stopped: Interrupted | None = None
        while courses:
            for folder, course in list(courses.items()):
                try:
                    next(course)
                    if not (folder / STOP).exists():
                        continue
                    course.close()
                    _lost(folder, PRUNED, "stopped by the study")
                except StopIteration:
                    pass
                except Interrupted as error:
                    stopped = error
                except NotFinite as error:
                    _lost(folder, DIVERGED, str(error))
                except (ValueError, OSError) as error:
                    _lost(folder, FAILED, str(error))
                del courses[folder]
    if stopped:
        raise stopped


def _lost(folder: Path, status: str, reason: str) -> None:
    """Leave word of a run that ends here, in its folder and in the log."""
    first = next(iter(reason.splitlines()), "without a word")
    leave_word(folder, status, first)
    print(f"{folder.parent.name}/{folder.name}: {status}, {first}", flush=True)


def _courses(
    experiments: Sequence[Experiment], folders: Sequence[Path], asked: list[int]
) -> Iterator[tuple[Path, Generator[int, None, None]]]:
    """Each run that can begin, and its course."""
    first: Run | None = None
    for experiment, folder in zip(experiments, folders, strict=True):
        try:
            run = Run(experiment, folder)
        except (ValueError, OSError) as error:
            _lost(folder, FAILED, str(error))
            continue
        first = first or run
        run.program, run.evaluate_step = first.program, first.evaluate_step
        yield folder, run.course(asked, partial(Spoken, f"{folder.parent.name}/{folder.name}"))
