"""Does a study that is killed again and again, at random moments, end with the same records, bit for bit?

    python -m benchmarks.killed_study --kills 10

A study of four tiny runs is left alone; then the same one is killed with SIGKILL, with its workers, and started again
until it is done. The exit code is 1 where results.csv or differences.csv differ in a byte.
"""

import argparse
import contextlib
import difflib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.worker import ROOT

PAGE = """\
from experiments.ablations.small import experiment
from lm.model.positions import Alibi
from lm.study.ablation import Ablation

base = experiment.replace(
    model=dict(layers=1, width=32, ffn=dict(mlp=64)),
    steps=200, batch_tokens=256, optimizer=dict(schedule=dict(warmup_steps=5)),
    eval_every_steps=50, eval_tokens=2_048, checkpoint_every_steps=10,
)
study = Ablation(base, {"base": {}, "alibi": dict(model=dict(positions=Alibi()))}, seeds=range(2))
"""
RECORDS = ("results.csv", "differences.csv")


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """The study in folder/name, in a group of processes of its own."""
    command = [sys.executable, "-m", "launch", "study", "killed:study", "--workdir", str(folder / name)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    log = (folder / f"{name}.log").open("ab")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def left_alone(folder: Path, name: str) -> tuple[float, float]:
    """Run the study to its end; the seconds until its first line of metrics, and from there to its end."""
    begun, process = time.monotonic(), start(folder, name)
    while process.poll() is None and not any((folder / name).rglob("metrics.jsonl")):
        time.sleep(0.05)
    trained = time.monotonic()
    if process.wait():
        raise ValueError((folder / f"{name}.log").read_text()[-2000:])
    return trained - begun, time.monotonic() - trained


def killed(folder: Path, name: str, kills: int, most: tuple[float, float], chance: random.Random) -> list[float]:
    """Start the study and kill it, so many times, on its way up or in its training; the seconds that each lived.

    `most`: seconds to start, and of training: a third of those, or else it would be done before the last kill."""
    lives = []
    for number in range(kills):
        process, life = start(folder, name), chance.uniform(0.3 * most[0], most[0] + 0.3 * most[1])
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(life) == 0:
                print(f"done after {number} kills: its runs were shorter than the rest of the kills")
                return lives
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        lives.append(life)
        print(f"killed after {life:.1f} s", flush=True)
    return lives


def same_record(folder: Path, name: str, record: str) -> bool:
    """Whether a record of the study `name` is that of the one left alone; where it is not, in which lines."""
    found, wanted = ((folder / n / record).read_text().splitlines() for n in (name, "alone"))
    for line in difflib.unified_diff(wanted, found, f"alone/{record}", f"{name}/{record}", n=0, lineterm=""):
        print(line)
    return found == wanted


def main() -> int:
    """Run both, and compare."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killed_study", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "killed.py").write_text(PAGE)
        left_alone(folder, "first")  # compiles, and prepares the data
        seconds = left_alone(folder, "alone")
        lives = killed(folder, "again", options.kills, seconds, random.Random(options.seed))
        left_alone(folder, "again")
        same = [same_record(folder, name, record) for name in ("first", "again") for record in RECORDS]
        resumed = (folder / "again").rglob("log.txt")
        went_on = sum(log.read_text(errors="replace").count("resumed from checkpoint") for log in resumed)
    print(
        f"{len(lives)} kills, {went_on} times gone on from a checkpoint: records {'' if all(same) else 'NOT '}the same"
    )
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
