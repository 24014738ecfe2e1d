"""Commands as processes of their own, forked from one that has imported what they use: a fresh one takes two seconds
for that, and its runs are the same (tests/study/test_forkserver.py)."""

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import set_forkserver_preload
from pathlib import Path

from launch.__main__ import main
from lm.run import course
from lm.run.evaluate import evaluate
from tests import tiny

set_forkserver_preload([__name__, "lm.run.together", "lm.pretrained", "lm.study.runner", "orbax.checkpoint"])


class Process(ForkServerProcess):
    """One that calls `command`, which returns or exits with its code; what it says is in `log`."""

    def __init__(self, log: Path, command: Callable[..., int | None], *arguments: object, **environment: str):
        super().__init__(daemon=True)
        self.log, self.command, self.arguments, self.environment = log, command, arguments, environment
        log.touch()
        self.start()

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, workdir: Path, count: int) -> None:
        """Until there are `count` lines of metrics in a run's folder."""
        file, end = workdir / "metrics.jsonl", time.time() + 120
        while not file.exists() or file.read_text().count("\n") < count:
            assert self.is_alive() and time.time() < end, self.said
            time.sleep(0.005)

    def run(self) -> None:
        sys.stdout = sys.stderr = self.log.open("w", buffering=1)
        for output in (1, 2):
            os.dup2(sys.stdout.fileno(), output)
        os.environ.update(self.environment)
        sys.exit(self.command(*map(str, self.arguments)))

    def finish(self, code: int = 0) -> str:
        """What it said, once it has ended with `code`."""
        self.join(300)
        assert self.exitcode == code, self.said
        return self.said


def train(*arguments: str) -> None:
    """`python -m tests.tiny`, but for the report, which no test reads."""
    course.write_report = lambda workdir: Path(workdir) / "report.html"
    tiny.main(*arguments)


def launch(*arguments: str) -> int:
    """`python -m launch`."""
    return main(arguments)


def measure(folder: str) -> None:
    """Print what a run's newest checkpoint is worth, as JSON."""
    print(json.dumps(evaluate(folder)))
