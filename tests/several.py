"""Several processes on this machine train one tiny run, and what happens to them is checked.

    python -m tests.several        everything, in a few minutes on two cores; tests/machine/test_processes.py has a part

1, 2 and 4 processes give the same losses; a run that 4 processes were asked to leave goes on with 2 and with 1; one of
two killed with -9 or stopped ends the other with a clear error, and the run goes on.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.local import environment
from lm.machine import processes
from lm.run import course
from tests import tiny
from tests.forked import Process
from tests.tiny import lines, write_texts

ROOT = Path(__file__).parent.parent
SETTINGS = ("prompts=()", "compute.matmul=float32")  # the same products whatever the machine, and nothing to sample
LOST_SECONDS = 60.0
DAMPED = 1e-4  # relative: sums over processes are taken in another order


def environments(n: int) -> list[dict[str, str]]:
    """What each of `n` processes finds that are to train together."""
    from socket import socket

    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [{k: v.replace("PORT", port) for k, v in environment(i, n, []).items()} for i in range(n)]


def start(
    n: int,
    texts: Path,
    workdir: Path,
    seconds: float = 0.0,
    *more: str,
    program: Sequence[str] = ("-m", "tests.tiny"),
    settings: Sequence[str] = SETTINGS,
) -> list[subprocess.Popen[str]]:
    """`n` processes of `program` that train the tiny experiment, each step `seconds` longer.

    Args:
      n: how many.
      texts: what it reads.
      workdir: the run's folder.
      seconds: added to each step.
      more: settings of the experiment, beside `settings`.
      program: of Python, with its arguments before these."""
    command = [sys.executable, *program, str(texts), str(workdir), str(seconds), *settings, *more]
    pipes = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [subprocess.Popen(command, env={**os.environ, **own}, **pipes) for own in environments(n)]  # type: ignore


def finish(processes: list[subprocess.Popen[str]], *codes: int, seconds: float = 300) -> list[str]:
    """What they said, once they ended with `codes` (all 0), within so many `seconds`."""
    said = [process.communicate(timeout=seconds)[0] for process in processes]
    assert [process.returncode for process in processes] == list(codes or [0] * len(processes)), "\n---\n".join(said)
    return said


def until_step(processes: list[subprocess.Popen[str]], workdir: Path, count: int) -> None:
    """Until there are `count` lines of metrics."""
    file, end = workdir / "metrics.jsonl", time.time() + 120
    while not file.exists() or file.read_text().count("\n") < count:
        assert all(p.poll() is None for p in processes) and time.time() < end, [p.communicate() for p in processes]
        time.sleep(0.01)


def same(found: Path, expected: Path) -> float:
    """The largest relative difference between the metrics of two runs, which have the same lines."""
    ours, theirs = lines(found), lines(expected)
    assert [(line["step"], sorted(line)) for line in ours] == [(line["step"], sorted(line)) for line in theirs]
    pairs = [(a[k], b[k]) for a, b in zip(ours, theirs, strict=True) for k in a]
    assert all(a == pytest.approx(b, rel=DAMPED) for a, b in pairs)
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in pairs)


def lost(texts: Path, workdir: Path, dead: int, number: int) -> str:
    """Two processes, of which the one at `dead` gets the signal `number`: what the other says, and when it ended."""
    both = start(2, texts, workdir, 0.2)
    until_step(both, workdir, 6)
    both[dead].send_signal(number)
    began = time.time()
    said = both[1 - dead].communicate(timeout=LOST_SECONDS)[0]
    seconds, code = time.time() - began, both[1 - dead].returncode
    both[dead].kill()
    both[dead].communicate()
    assert code not in (0, None), said
    told = next(line for line in said.splitlines() if "another one has died" in line or "another task died" in line)
    return f"the other ended with code {code} after {seconds:.1f} s: {told[:200]}"


RAISED = {"full": ValueError("its disk is full"), "own": RuntimeError("on its own")}


def fail(at: str, raised: str, *arguments: str) -> None:
    """`python -m tests.tiny`, but the process `at` raises that in its fifth step."""
    place, calls = course.place_batch, []

    def failing(*args: object) -> object:
        calls.append(1)
        if len(calls) == 5 and processes.index() == int(at):
            raise RAISED[raised]
        return place(*args)  # type: ignore[arg-type]

    course.place_batch = failing  # type: ignore[assignment]
    tiny.main(*arguments)


def failed(texts: Path, workdir: Path, at: int, raised: str) -> tuple[list[int | None], list[str]]:
    """Two processes, of which the one `at` raises one of RAISED: their exit codes, what they said."""
    few = ("model.layers=1", "eval_every_steps=12", "checkpoint_every_steps=12")  # it ends before either
    arguments = (fail, at, raised, texts, workdir, 0.1, *SETTINGS, *few)
    logs = [workdir.with_suffix(f".{i}.txt") for i in range(2)]
    both = [Process(log, *arguments, **own) for log, own in zip(logs, environments(2), strict=True)]
    for process in both:
        process.join(300)
    return [process.exitcode for process in both], [process.said for process in both]


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lm-several-"))
    texts = write_texts(folder / "texts")
    os.environ.setdefault("LM_CACHE", str(folder / "cache"))
    os.environ["JAX_PLATFORMS"] = "cpu"
    for n in (1, 2, 4):
        finish(start(n, texts, folder / f"{n}"))
        print(f"{n} processes: within {same(folder / f'{n}', folder / '1'):.1e} of one", flush=True)

    four = start(4, texts, folder / "left", 0.2)
    until_step(four, folder / "left", 5)
    four[2].send_signal(signal.SIGTERM)
    print(finish(four, 75, 75, 75, 75)[0].strip().splitlines()[-1], flush=True)
    for n in (2, 1):
        run = Path(shutil.copytree(folder / "left", folder / f"left-{n}"))
        said = finish(start(n, texts, run))[0]
        resumed = next(line for line in said.splitlines() if "resumed" in line)
        print(f"by {n}: {resumed}, within {same(run, folder / '1'):.1e} of one that was never left", flush=True)

    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        for dead in (1, 0):
            run = folder / f"{name}-{dead}"
            print(f"process {dead} of 2 {name}: {lost(texts, run, dead, number)}", flush=True)
            finish(start(2, texts, run))
            print(f"  started again: within {same(run, folder / '1'):.1e}", flush=True)
    for at, raised in ((1, "full"), (0, "own")):
        codes, said = failed(texts, folder / f"failed-{at}", at, raised)
        print(f"process {at} of 2 fails: codes {codes}, {said[1 - at].splitlines()[-1]}", flush=True)
        assert codes == ([75, 1] if at else [1, 75])
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
