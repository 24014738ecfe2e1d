"""Runs of tests that share what is compiled, as those of a study's process do, or have no report that no test reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lm.experiment import Experiment
from lm.run import course
from lm.run.together import program_key


@contextmanager
def shared_programs(module: Any = course) -> Iterator[None]:
    """The runs that `module` makes are like the first one of their program, where they are like none."""
    first: dict[str, course.Run] = {}
    make = course.Run

    def run(one: Experiment, folder: Path, command: str = "", like: course.Run | None = None) -> course.Run:
        made = make(one, folder, command, like or first.get(program_key(one)))
        first.setdefault(program_key(one), made)
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "Run", run)
        yield


@contextmanager
def without_reports() -> Iterator[None]:
    """Runs write no report."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(course, "write_report", lambda workdir: Path(workdir) / "report.html")
        yield
