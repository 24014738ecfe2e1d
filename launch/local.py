"""`lm launch local`: several processes on this machine, each with its share of the cores or GPUs.

JAX joins them: gloo carries what they exchange on CPUs, NCCL on GPUs. The first one's output is shown, the others' go
to files. Where one dies the others are ended.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from launch.job import Job

EPILOG = """\
examples:
  lm launch local -n 2 experiments.quickstart --devices cpu
  lm launch local -n 4 experiments.quickstart --set mesh.fsdp=2 mesh.data=2 --dry-run
"""
PATIENCE_SECONDS = 10.0  # for the others to tell that one has died
LOOK_SECONDS = 0.1
LOST = (75, -signal.SIGABRT)  # how one ends that has lost another: not the culprit; JAX aborts where the first is lost


def add(engines: Any) -> Any:
    """Declare the engine."""
    engine = engines.add_parser("local", help="processes on this machine", description=__doc__, epilog=EPILOG)
    engine.add_argument("-n", "--processes", type=int, default=2, metavar="N", help="how many (2)")
    engine.add_argument("--logs", default="", metavar="DIR", help="the others' output (default: WORKDIR/logs)")
    return engine


def run(args: argparse.Namespace, job: Job) -> int:
    """Start the processes, and wait for them; the exit code of the one that failed first."""
    if args.processes < 1:
        raise ValueError(f"-n {args.processes}: expected at least 1")
    if job.verb != "train" and args.processes > 1:
        raise ValueError(
            f"lm {job.verb} is one process: -n 1; a study spreads its runs by itself, with lm study --workers N"
        )
    devices = getattr(job.parsed, "devices", "")
    gpus = [] if devices in ("cpu", "tpu") else graphics()
    if gpus and len(gpus) % args.processes:
        raise ValueError(f"{len(gpus)} GPUs do not divide among {args.processes} processes")
    command = [sys.executable, "-m", "launch", *job.command]
    each = [environment(i, args.processes, gpus) for i in range(args.processes)]
    if args.dry_run:
        for env in each:
            print(" ".join(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(command))
        return 0
    where = "logs" if "://" in job.workdir else f"{job.workdir}/logs"
    return together(command, each, Path(args.logs or where))


def environment(i: int, processes: int, gpus: list[str]) -> dict[str, str]:
    """What process `i` is told; the port is filled in when they start."""
    env = {"LM_COORDINATOR": "127.0.0.1:PORT", "LM_PROCESSES": str(processes), "LM_PROCESS": str(i)}
    share = len(gpus) // processes
    return env | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share : (i + 1) * share])} if gpus else {})


def graphics() -> list[str]:
    """The GPUs of this machine, by number."""
    try:
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(asked.stdout.splitlines()) if line.startswith("GPU")]


def together(command: list[str], each: list[dict[str, str]], logs: Path) -> int:
    """Run `command` once under each environment; 0 where all end well, else the code of the first that did not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as stack:
        running: list[subprocess.Popen[bytes]] = []
        stack.callback(_kill, running)
        for i, env in enumerate(each):
            env = {**os.environ, **{k: v.replace("PORT", port) for k, v in env.items()}}
            out = None
            if i:
                logs.mkdir(parents=True, exist_ok=True)
                out = stack.enter_context((logs / f"process-{i}.txt").open("ab"))
            running.append(subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True))
            _keep_to_share(running[-1].pid, i, len(each))
        stack.enter_context(_passing_on(running))
        return _watched(running, logs)


def _keep_to_share(pid: int, i: int, processes: int) -> None:
    """A process's own cores, where there are enough: threads of several would wait for one another's."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = len(cores) // processes
        if share:
            os.sched_setaffinity(pid, cores[i * share : (i + 1) * share])


class _passing_on:
    """Inside it Ctrl-C and SIGTERM reach the processes, which end together after a checkpoint; a second one kills."""

    def __init__(self, running: list[subprocess.Popen[bytes]]):
        self.running, self.asked = running, False

    def _note(self, number: int, frame: FrameType | None) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if self.asked else signal.SIGTERM)
        self.asked = True

    def __enter__(self) -> None:
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _watched(running: list[subprocess.Popen[bytes]], logs: Path) -> int:
    """Wait until all have ended: a while after the first that failed, the rest are killed. The code of the culprit."""
    ended: list[int] = []  # by themselves, in their order
    until = float("inf")
    while len(ended) < len(running) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        ended += [i for i, process in enumerate(running) if i not in ended and process.poll() is not None]
        if until == float("inf") and any(running[i].returncode for i in ended):
            until = time.monotonic() + PATIENCE_SECONDS
    _kill(running)
    failed = sorted((running[i].returncode in LOST, n, i) for n, i in enumerate(ended) if running[i].returncode)
    return _blamed(failed[0][2], running, logs) if failed else 0


def _kill(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.kill()
        process.wait()


def _blamed(i: int, running: list[subprocess.Popen[bytes]], logs: Path) -> int:
    """Say how process `i` ended; its code as a shell gives it."""
    code = running[i].returncode
    if code != 128 + signal.SIGTERM:  # asked to end, and did
        how = f"was killed by signal {-code}" if code < 0 else f"failed with code {code}"
        log = f"; its output: {logs / f'process-{i}.txt'}" if i else ""
        print(f"lm: process {i} of {len(running)} {how}: the others were ended{log}", file=sys.stderr)
    return code if code > 0 else 128 - code
