"""Where a study's processes run: on this machine, some at a time, or as one array of Slurm, a task for each group of
runs. The processes are those of worker.py."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lm.study.forkserver import Forked, ForkServer
from lm.study.trial import Trial

FIRST_SECONDS, SLURM_SECONDS = 0.5, 2.0  # before the first look at the runs, and between two at Slurm's queue
POLL_SECONDS = 0.02  # between two looks whether a process has ended
PATIENCE_SECONDS = 30.0  # for a process that was asked to end to write its checkpoint
TASKS = "slurm-tasks.txt"  # in the study's folder: a command line a task
Groups = Sequence[Sequence[Trial]]
Process = subprocess.Popen[bytes] | Forked


def worker_arguments(group: Sequence[Trial], study: Path, *options: str) -> list[str]:
    """The arguments of the process that trains the runs of `group`."""
    return [*(str(trial.folder(study)) for trial in group), *options]


def worker_command(arguments: Sequence[str]) -> list[str]:
    """The command line of that process."""
    return [sys.executable, "-m", "lm.study.worker", *arguments]


def log_file(group: Sequence[Trial], study: Path) -> Path:
    """Where that process writes: in the folder of the first of its runs."""
    return group[0].folder(study) / "log.txt"


# ---------------------------------------------------------------- this machine


def core_sets(workers: int) -> list[str]:
    """The cores of each of `workers` processes, as 0,1,2; nothing where one has all, or there are too few."""
    if workers == 1 or not hasattr(os, "sched_getaffinity"):
        return [""] * workers
    cores = sorted(os.sched_getaffinity(0))
    size = len(cores) // workers
    return [",".join(map(str, cores[i * size : (i + 1) * size])) for i in range(workers)]


def split(groups: Groups, workers: int) -> list[Sequence[Trial]]:
    """The groups, the largest halved until each of `workers` has one: two programs on two cores beat one on one."""
    parts = list(groups)
    while len(parts) < workers and len(largest := max(parts, key=len, default=())) > 1:
        at, middle = parts.index(largest), (len(largest) + 1) // 2
        parts[at : at + 1] = [largest[:middle], largest[middle:]]
    return parts


class Local:
    """`workers` processes at a time, on `devices` (cpu, gpu, tpu or the best there is); runs that share a process go
    `together` as lm/run/together.py's HOW says. They are forked by the `server`, where there is one, or fresh ones."""

    def __init__(self, workers: int = 1, devices: str = "", together: str = "auto", server: ForkServer | None = None):
        if workers < 1:
            raise ValueError(f"--workers {workers}: expected at least 1")
        self.workers, self.devices, self.together, self.server = workers, devices, together, server

    def __call__(self, groups: Groups, study: Path, watch: Callable[[], float]) -> None:
        """Run all `groups`, and call `watch`, which says when it would be called next. What is running ends with this
        process."""
        waiting = split(groups, self.workers)
        free = core_sets(self.workers)
        running: list[tuple[Process, str]] = []
        pause = FIRST_SECONDS
        with ExitStack() as stack:
            stack.callback(lambda: _terminate([process for process, _ in running]))
            while waiting or running:
                while waiting and free:
                    cores = free.pop(0)
                    running.append((self._start(waiting.pop(0), study, cores), cores))
                _wait_for_one([process for process, _ in running], pause)
                ended = [one for one in running if one[0].poll() is not None]
                running = [one for one in running if one not in ended]
                free += [cores for _, cores in ended]
                pause = watch()

    def _start(self, group: Sequence[Trial], study: Path, cores: str) -> Process:
        options = ["--watched", "--devices", self.devices, "--cores", cores, "--together", self.together]
        arguments = worker_arguments(group, study, *options)
        with log_file(group, study).open("ab") as log:
            if self.server and (forked := self.server.start(arguments, log.fileno())):
                return forked
            command = worker_command(arguments)
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)


def _wait_for_one(processes: Sequence[Process], seconds: float) -> None:
    """Return when one of the processes has ended, or so many seconds are over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        time.sleep(POLL_SECONDS)


def _terminate(processes: Sequence[Process]) -> None:
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


# ---------------------------------------------------------------- Slurm


class Slurm:
    """An array job submitted with `options` of sbatch (partition, time, devices), its tasks on `devices`; runs that
    share a task go `together`. This process waits, and cancels the array where it is interrupted."""

    def __init__(self, options: str = "", devices: str = "", together: str = "auto"):
        if not shutil.which("sbatch"):
            raise ValueError("--executor slurm: sbatch is not on the PATH; run on a node that submits jobs")
        self.options, self.devices, self.together = shlex.split(options), devices, together

    def __call__(self, groups: Groups, study: Path, watch: Callable[[], float]) -> None:
        """Submit all `groups`, and wait until none is waiting or running."""
        job = self._submit(groups, study.resolve())
        try:
            while _in_queue(job):
                time.sleep(SLURM_SECONDS)
                watch()
        except BaseException:
            subprocess.run(["scancel", job], check=False)
            raise

    def _submit(self, groups: Groups, study: Path) -> str:
        """The job's number; its tasks read their command lines from a file."""
        options = "--devices", self.devices, "--together", self.together
        commands = [worker_command(worker_arguments(group, study, *options)) for group in groups]
        lines = [
            f"{shlex.join(command)} >> {shlex.quote(str(log_file(group, study)))} 2>&1"
            for command, group in zip(commands, groups, strict=True)
        ]
        (study / TASKS).write_text("\n".join(lines) + "\n")
        task = f'eval "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(study / TASKS))})"'
        command = ["sbatch", "--parsable", f"--array=0-{len(groups) - 1}", f"--job-name={study.name}"]
        command += [f"--output={str(study).replace('%', '%%')}/slurm-%A_%a.log", *self.options, "--wrap", task]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"sbatch refused the study: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip().partition(";")[0]


def _in_queue(job: str) -> bool:
    """Whether a task of `job` is waiting or running; a queue that does not answer counts as yes."""
    command = ["squeue", "--noheader", "--format=%t", "--jobs", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return "Invalid job id" not in done.stderr
    return bool(done.stdout.strip())
