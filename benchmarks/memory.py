"""Peak resident memory of a training step, ours beside the peer's.

    python -m benchmarks.memory llama --peer-python /tmp/peers/bin/python --keep

Each side is a process that has taken its first steps, so that nothing is compiled any more; what was the most before
is forgotten (Linux: /proc/PID/clear_refs), and it takes some more. All of the process counts: its libraries, its
compiled programs, parameters, the optimizer's state, activations.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.machine import describe
from benchmarks.sides import Side, our_sides, peer_sides
from benchmarks.sizes import SIZES
from benchmarks.worker import Worker

STEPS = 3


def peak(worker: Worker) -> float:
    """The most that is resident while a worker takes STEPS steps, in MB."""
    worker.train(STEPS)
    process = Path(f"/proc/{worker.process.pid}")
    (process / "clear_refs").write_text("5")  # the peak is what is resident now
    worker.train(STEPS)
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measure(sides: list[Side], rounds: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Each side's peaks, a process each round, and the versions of what ran."""
    peaks: dict[str, list[float]] = {side.name: [] for side in sides}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(rounds):
            for side in sides:
                worker = side.start(cache)
                try:
                    peaks[side.name].append(peak(worker))
                finally:
                    worker.close()
                versions |= worker.versions
                print(f"{side.name}: {peaks[side.name][-1]:,.0f} MB", flush=True)
    return peaks, versions


def main() -> None:
    """Measure one size, print the table, and with --keep write it to RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--nanogpt", metavar="CLONE", default="", help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--peer-python", default=sys.executable, help="the one with benchmarks/requirements.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    sides = peer_sides(options.size, options.peer_python, options.nanogpt, False) + our_sides(options.size)
    peaks, versions = measure(sides, options.rounds)
    middle = {side.name: statistics.median(peaks[side.name]) for side in sides}
    theirs = {side.precision: middle[side.name] for side in sides if not side.ours}
    rows = [[s.name, f"{middle[s.name]:,.0f}", f"{middle[s.name] / theirs[s.precision]:.2f}"] for s in sides]
    columns, title = ["side", "peak, MB", "of the peer's"], f"Peak resident memory of a training step, {options.size}"
    notes = [
        f"{time.strftime('%Y-%m-%d')}, medians of {options.rounds} processes.",
        report.setting(describe(), versions),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep(f"memory {options.size}", report.markdown(title, columns, rows, notes))


if __name__ == "__main__":
    main()
