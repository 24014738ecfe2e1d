"""Running a study's processes on this machine: some at a time, each with its share of the cores."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lm.study.trial import Trial

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 30.0  # for a process that was asked to end to write its checkpoint


def command(group: Sequence[Trial], study: Path, *options: str) -> list[str]:
    """The worker's command line for the runs of `group`."""
    return [sys.executable, "-m", "lm.study.worker", *(str(t.folder(study)) for t in group), *options]


def shares(workers: int) -> list[str]:
    """The cores of each of `workers` processes, as 0,1,2; nothing where one has all, or there are too few."""
    if workers == 1 or not hasattr(os, "sched_getaffinity"):
        return [""] * workers
    cores = sorted(os.sched_getaffinity(0))
    size = len(cores) // workers
    return [",".join(map(str, cores[i * size : (i + 1) * size])) for i in range(workers)]


def spread(groups: Sequence[Sequence[Trial]], workers: int) -> list[Sequence[Trial]]:
    """The groups, the largest halved until each of `workers` has one: two programs on two cores beat one on one."""
    found = list(groups)
    while len(found) < workers and len(largest := max(found, key=len, default=())) > 1:
        at, middle = found.index(largest), (len(largest) + 1) // 2
        found[at : at + 1] = [largest[:middle], largest[middle:]]
    return found


class Local:
    """`workers` processes at a time, on `devices` (cpu, gpu, tpu or the best there is); runs that share a process go
    `together` as lm/study/together.py's HOW says."""

    def __init__(self, workers: int = 1, devices: str = "", together: str = "auto"):
        if workers < 1:
            raise ValueError(f"--workers {workers}: expected at least 1")
        self.workers, self.devices, self.together = workers, devices, together

    def __call__(self, groups: Sequence[Sequence[Trial]], study: Path, watch: Callable[[], None]) -> None:
        """Run all `groups`, looking at them now and then. What is running ends with this process."""
        waiting = spread(groups, self.workers)
        free = shares(self.workers)
        running: list[tuple[subprocess.Popen[bytes], str]] = []
        with ExitStack() as stack:
            stack.callback(lambda: _end([process for process, _ in running]))
            while waiting or running:
                while waiting and free:
                    cores = free.pop(0)
                    running.append((self._start(waiting.pop(0), study, cores), cores))
                time.sleep(LOOK_SECONDS)
                ended = [one for one in running if one[0].poll() is not None]
                running = [one for one in running if one not in ended]
                free += [cores for _, cores in ended]
                watch()

    def _start(self, group: Sequence[Trial], study: Path, cores: str) -> subprocess.Popen[bytes]:
        options = ["--watched", "--devices", self.devices, "--cores", cores, "--together", self.together]
        log = group[0].folder(study) / "log.txt"
        with log.open("ab") as file:
            return subprocess.Popen(
                command(group, study, *options), stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT
            )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let the processes write their checkpoints and end: their standard input closes."""
    for process in processes:
        if process.stdin:
            process.stdin.close()
    until = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
