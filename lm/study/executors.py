"""Where a study's processes run: on this machine, some at a time, or as one array of Slurm, a task for each group of
runs. The processes are those of worker.py."""

import contextlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lm.machine import hardware
from lm.run.memory import host_bytes
from lm.study.forkserver import Forked, ForkServer
from lm.study.trial import Trial

FIRST_SECONDS, SLURM_SECONDS = 0.5, 2.0  # before the first look at the runs, and between two at Slurm's queue
POLL_SECONDS = 0.02  # between two looks whether a process has ended
PATIENCE_SECONDS = 30.0  # for a process that was asked to end to write its checkpoint
TASKS = "slurm-tasks.txt"  # in the study's folder: a command line a task
SPARE = 3.0  # of what a run cannot do without, what it takes at most: 8 layers of 512 2.9 of 0.74 GB
PROCESS_BYTES = 1e9  # of a process that trains, besides: the quickstart 1.1 of 0.12 GB
Groups = Sequence[Sequence[Trial]]
Fit = Callable[[Groups], bool]
Process = subprocess.Popen[bytes] | Forked


def always(groups: Groups) -> bool:
    """All groups fit."""
    return True


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


def split(groups: Groups, workers: int, fit: Fit = always) -> list[Sequence[Trial]]:
    """The groups, the largest halved until each of `workers` has one, where the halves `fit` beside each other: one
    process compiles or writes while another computes."""
    parts = list(groups)
    while len(parts) < workers and len(largest := max(parts, key=len, default=())) > 1:
        at, middle = parts.index(largest), (len(largest) + 1) // 2
        halves = [largest[:middle], largest[middle:]]
        if not fit(halves):
            break
        parts[at : at + 1] = halves
    return parts


def fit_in_memory(groups: Groups) -> bool:
    """Whether this machine's memory holds a process for each of `groups`."""
    return sum(map(_bytes, groups)) <= hardware.host_memory()


def _bytes(group: Sequence[Trial]) -> float:
    """What the process of a group may take, with the states of all its runs in memory and one of them at work; one that
    cannot be built, which it will say itself, takes little."""
    with contextlib.suppress(ValueError, OSError):
        return (SPARE + len(group) - 1) * host_bytes(group[0].experiment) + PROCESS_BYTES
    return PROCESS_BYTES


class Local:
    """Processes on this machine. Each has all of its cores, since with fewer a run has other last digits: the system
    divides them."""

    def __init__(
        self,
        workers: int = 1,
        devices: str = "",
        together: str = "auto",
        server: ForkServer | None = None,
        fit: Fit = always,
    ):
        """`workers` processes at a time.

        Args:
          workers: the most.
          devices: cpu, gpu, tpu or "" for the best there is.
          together: how runs that share a process go, of lm/run/together.py's HOW.
          server: forks the processes; None: they are fresh ones.
          fit: whether processes for these groups can be there at a time. The first of all is started anyway."""
        if workers < 1:
            raise ValueError(f"--workers {workers}: expected at least 1")
        self.workers, self.devices, self.together, self.server, self.fit = workers, devices, together, server, fit

    def __call__(self, groups: Groups, study: Path, watch: Callable[[], float]) -> None:
        """Run all `groups`, and call `watch`, which says when it would be called next. What is running ends with this
        process."""
        waiting = split(groups, self.workers, self.fit)
        running: list[tuple[Process, Sequence[Trial]]] = []
        pause = FIRST_SECONDS
        with ExitStack() as stack:
            stack.callback(lambda: _terminate([process for process, _ in running]))
            while waiting or running:
                while waiting and self._has_room([group for _, group in running], waiting[0]):
                    group = waiting.pop(0)
                    running.append((self._start(group, study), group))
                _wait_for_one([process for process, _ in running], pause)
                running = [one for one in running if one[0].poll() is None]
                pause = watch()

    def _has_room(self, running: Groups, group: Sequence[Trial]) -> bool:
        return not running or len(running) < self.workers and self.fit([*running, group])

    def _start(self, group: Sequence[Trial], study: Path) -> Process:
        options = ["--watched", "--devices", self.devices, "--together", self.together]
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
