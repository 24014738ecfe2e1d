"""`lm launch local`: several processes on this machine, each with its share of the cores or GPUs.

JAX connects them by gloo on CPUs, by NCCL on GPUs. The output of the first process is shown, that of the others goes to
files. When one process fails, the others are killed.
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
GRACE_SECONDS = 10.0  # for the others to end by themselves after one has failed
POLL_SECONDS = 0.1
PEER_LOST = (75, -signal.SIGABRT)  # exit codes of a process that lost another; JAX aborts where the first is lost


def add(engines: Any) -> Any:
    """Declare the engine."""
    engine = engines.add_parser("local", help="processes on this machine", description=__doc__, epilog=EPILOG)
    engine.add_argument("-n", "--processes", type=int, default=2, metavar="N", help="how many (2)")
    engine.add_argument("--logs", default="", metavar="DIR", help="the others' output (default: WORKDIR/logs)")
    return engine


def run(args: argparse.Namespace, job: Job) -> int:
    """Start the processes and wait for them; the exit code of the one that failed first."""
    if args.processes < 1:
        raise ValueError(f"-n {args.processes}: expected at least 1")
    if job.verb != "train" and args.processes > 1:
        raise ValueError(
            f"lm {job.verb} is one process: -n 1; a study spreads its runs by itself, with lm study --workers N"
        )
    devices = getattr(job.parsed, "devices", "")
    gpus = [] if devices in ("cpu", "tpu") else gpu_indices()
    if gpus and len(gpus) % args.processes:
        raise ValueError(f"{len(gpus)} GPUs do not divide among {args.processes} processes")
    command = [sys.executable, "-m", "launch", *job.command]
    each = [environment(i, args.processes, gpus) for i in range(args.processes)]
    if args.dry_run:
        for env in each:
            print(" ".join(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(command))
        return 0
    where = "logs" if "://" in job.workdir else f"{job.workdir}/logs"
    return run_processes(command, each, Path(args.logs or where))


def environment(i: int, processes: int, gpus: list[str]) -> dict[str, str]:
    """The environment of process `i`; PORT is replaced when they start."""
    env = {"LM_COORDINATOR": "127.0.0.1:PORT", "LM_PROCESSES": str(processes), "LM_PROCESS": str(i)}
    share = len(gpus) // processes
    return env | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share : (i + 1) * share])} if gpus else {})


def gpu_indices() -> list[str]:
    """The indices of this machine's GPUs."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU")]


def run_processes(command: list[str], each: list[dict[str, str]], logs: Path) -> int:
    """Run `command` once in each environment; 0 where all succeed, else the exit code of the first that failed."""
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
            _pin_cores(running[-1].pid, i, len(each))
        stack.enter_context(_ForwardSignals(running))
        return _wait(running, logs)


def _pin_cores(pid: int, i: int, processes: int) -> None:
    """Pin process `i` to cores of its own, where there are enough: otherwise their threads compete."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = len(cores) // processes
        if share:
            os.sched_setaffinity(pid, cores[i * share : (i + 1) * share])


class _ForwardSignals:
    """Forwards Ctrl-C and SIGTERM to the processes, which stop together after a checkpoint; a second one kills them."""

    def __init__(self, running: list[subprocess.Popen[bytes]]):
        self.running, self.stopping = running, False

    def _forward(self, number: int, frame: FrameType | None) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if self.stopping else signal.SIGTERM)
        self.stopping = True

    def __enter__(self) -> None:
        self.before = {s: signal.signal(s, self._forward) for s in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _wait(running: list[subprocess.Popen[bytes]], logs: Path) -> int:
    """Wait until all have ended, and kill those still running GRACE_SECONDS after the first failure; the exit code."""
    ended: list[int] = []  # by themselves, in order
    deadline = float("inf")
    while len(ended) < len(running) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        ended += [i for i, process in enumerate(running) if i not in ended and process.poll() is not None]
        if deadline == float("inf") and any(running[i].returncode for i in ended):
            deadline = time.monotonic() + GRACE_SECONDS
    _kill(running)
    failed = sorted((running[i].returncode in PEER_LOST, n, i) for n, i in enumerate(ended) if running[i].returncode)
    return _report_failure(failed[0][2], running, logs) if failed else 0


def _kill(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.kill()
        process.wait()


def _report_failure(i: int, running: list[subprocess.Popen[bytes]], logs: Path) -> int:
    """Print how process `i` ended; its exit code as in a shell."""
    code = running[i].returncode
    if code != 128 + signal.SIGTERM:  # stopped on SIGTERM, after a checkpoint
        how = f"was killed by signal {-code}" if code < 0 else f"failed with code {code}"
        log = f"; its output: {logs / f'process-{i}.txt'}" if i else ""
        print(f"lm: process {i} of {len(running)} {how}: the others were ended{log}", file=sys.stderr)
    return code if code > 0 else 128 - code
