"""A job that was submitted: its state, its output, its end; `--status`, `--follow` and `--cancel` of the engines.

An engine of this kind has functions of its options and the job: `state`, in words ("": there is no such job), `cancel`,
and `follow`, which prints the job's output until it ends and returns an exit code. One without `follow` stays with its
command until that ends.
"""

import argparse
import re
import subprocess
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from launch.job import Job

LOGGED = re.compile(r"^[IWE]\d{4} .*\n?", re.MULTILINE)  # kubectl's log, before the line that is for people
OPTIONS = {
    "status": "print the job's state, and submit nothing",
    "cancel": "end the job, after a checkpoint where it can write one, and submit nothing",
    "follow": "print the job's output until it ends, also of one that is there already; Ctrl-C leaves the job alone",
}


def add(engine: Any) -> None:
    """Declare the options."""
    group = engine.add_argument_group("of a job by its --name, or by that of the experiment")
    only = group.add_mutually_exclusive_group()
    for name, help in OPTIONS.items():
        only.add_argument(f"--{name}", action="store_true", help=help)


def asked(args: argparse.Namespace) -> bool:
    """Whether one of the options is given."""
    return any(getattr(args, name, False) for name in OPTIONS)


def run(args: argparse.Namespace, job: Job, engine: ModuleType) -> int:
    """Do what is asked; the exit code. Raises ValueError where there is no such job."""
    if args.dry_run:
        raise ValueError("--dry-run is of what would be submitted: leave it out, or --status, --follow and --cancel")
    if args.follow and not hasattr(engine, "follow"):
        return int(engine.run(args, job) or 0)
    state = engine.state(args, job)
    if args.follow:
        if not state:
            if not job.command:
                raise missing(args, job)
            engine.run(args, job)
        return int(engine.follow(args, job))
    if not state:
        raise missing(args, job)
    print(state)
    if args.cancel:
        engine.cancel(args, job)
        print(f"{job.name}: cancelled")
    return 0


def missing(args: argparse.Namespace, job: Job) -> ValueError:
    """That there is no such job."""
    return ValueError(f"lm launch {args.engine}: no job {job.name!r} is there; --name says which, where it is another")


def output(command: Sequence[str], absent: str = "") -> str:
    """What a tool prints; "" where it fails with `absent` in its message. Raises ValueError for another failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not (absent and absent in done.stderr):
        said = LOGGED.sub("", done.stderr).strip() or done.stderr.strip() or done.stdout.strip()
        shown = textwrap.shorten(said or f"code {done.returncode}", 500, placeholder=" …")
        raise ValueError(f"{' '.join(command[:3])} failed: {shown}")
    return "" if done.returncode else done.stdout.strip()
