"""Seconds from a process's start to the end of its first step, with an empty and with a filled compilation cache.

    python -m benchmarks.first_step baby --nanogpt CLONE --peer-python PYTHON --train experiments.quickstart

Each round gives every side a new cache folder and starts it twice. Imports and the making of the model are in the time;
the files of the interpreter and its packages are in the page cache. `--train` adds `lm train EXPERIMENT`, to its first
line of metrics; its tokenizer and token store are made by a run before, which is not measured.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.machine import describe
from benchmarks.sides import caches, our_sides, peer_sides
from benchmarks.sizes import SIZES
from benchmarks.worker import ROOT

Times = dict[str, list[tuple[float, float]]]  # side -> (cold, warm) in seconds, a round each


def first_line(experiment: str, settings: list[str], environment: dict[str, str], limit: float = 600) -> float:
    """Seconds from the start of `lm train` to the first line in its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "launch", "train", experiment, "--workdir", str(workdir)]
        command += ["--set", "log_every_steps=1", *settings]
        begun = time.perf_counter()
        said = Path(folder) / "said"
        with said.open("w") as file:
            environment = {**os.environ, **environment}
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        metrics = workdir / "metrics.jsonl"
        try:
            while not (metrics.exists() and "\n" in metrics.read_text()):
                if process.poll() is not None or time.perf_counter() - begun > limit:
                    raise ValueError(f"`{' '.join(command)}` wrote no metrics:\n{said.read_text()[-2000:]}")
                time.sleep(0.01)
            return time.perf_counter() - begun
        finally:
            process.kill()
            process.wait()


def measure(options: argparse.Namespace) -> tuple[Times, dict[str, str]]:
    """Every side's times, sides in turn, and the versions of what ran."""
    times: Times = {}
    versions: dict[str, str] = {}
    sides = peer_sides(options.size, options.peer_python, options.nanogpt, options.compile) + our_sides(options.size)
    if options.train:
        first_line(options.train, options.set, {})
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            with tempfile.TemporaryDirectory() as folder:
                pair = []
                for _ in range(2):
                    worker = side.start(folder)
                    worker.close()
                    pair.append(worker.first_step)
                    versions |= worker.versions
            times.setdefault(side.name, []).append((pair[0], pair[1]))
            print(f"{side.name}: cold {pair[0]:.1f} s, warm {pair[1]:.1f} s", flush=True)
        if options.train:
            with tempfile.TemporaryDirectory() as folder:
                cold, warm = (first_line(options.train, options.set, caches(folder)) for _ in range(2))
            times.setdefault(f"lm train {options.train}", []).append((cold, warm))
    return times, versions


def main() -> None:
    """Measure one size, print the table, and with --keep write it to RESULTS.md."""
    options = _options()
    times, versions = measure(options)
    columns = ["side", "cold, s", "warm, s", "cold range"]
    rows = [
        [
            name,
            f"{statistics.median(c for c, _ in pairs):.1f}",
            f"{statistics.median(w for _, w in pairs):.1f}",
            f"{min(c for c, _ in pairs):.1f} - {max(c for c, _ in pairs):.1f}",
        ]
        for name, pairs in times.items()
    ]
    title = f"From process start to the first step finished, {options.size}"
    notes = [
        f"{time.strftime('%Y-%m-%d')}, {options.rounds} rounds, medians; cold: empty cache, warm: second start.",
        report.setting(describe(), versions),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep(f"first step {options.size}", report.markdown(title, columns, rows, notes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_step", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--nanogpt", metavar="CLONE", default="", help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--peer-python", default=sys.executable, help="the one with benchmarks/requirements.txt")
    parser.add_argument("--compile", action="store_true", help="the peer through torch.compile too")
    parser.add_argument("--train", metavar="EXPERIMENT", default="", help="time `lm train EXPERIMENT` as well")
    parser.add_argument("--set", nargs="*", default=[], help="settings for that experiment, as in steps=1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    if SIZES[options.size].peer == "nanogpt" and not options.nanogpt:
        parser.error("this size's peer is nanoGPT: give its clone with --nanogpt")
    return options


if __name__ == "__main__":
    main()
