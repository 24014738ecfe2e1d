"""Peak resident memory of a training step, ours beside the peer's.

    python -m benchmarks.memory llama --peer-python /tmp/peers/bin/python --keep

Each side is a process that has taken its first steps, so that nothing is compiled any more; what was the most before
is forgotten (Linux: /proc/PID/clear_refs), and it takes some more. All of the process counts: its libraries, its
compiled programs, parameters, the optimizer's state, activations. Ours are measured as they are, and with all but
matrix products computed again in the backward pass (compute.remat="dots"), which costs time: a step's stands beside.
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


def peak(worker: Worker) -> tuple[float, float]:
    """The most that is resident while a worker takes STEPS steps, in MB, and the seconds of one."""
    worker.train(STEPS)
    process = Path(f"/proc/{worker.process.pid}")
    (process / "clear_refs").write_text("5")  # the peak is what is resident now
    seconds = worker.train(STEPS) / STEPS
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6, seconds


def measure(sides: list[Side], rounds: int) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    """Each side's peaks and seconds a step, a process each round, and the versions of what ran."""
    peaks: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
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
                print("{}: {:,.0f} MB, {:.2f} s".format(side.name, *peaks[side.name][-1]), flush=True)
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
    sides = peer_sides(options.size, options.peer_python, options.nanogpt, False)
    sides += our_sides(options.size, remat=("nothing", "dots"))
    peaks, versions = measure(sides, options.rounds)
    middle = {name: tuple(map(statistics.median, zip(*both, strict=True))) for name, both in peaks.items()}
    theirs = {side.precision: middle[side.name] for side in sides if not side.ours}

    def row(side: Side) -> list[str]:
        (most, seconds), (their_most, their_seconds) = middle[side.name], theirs[side.precision]
        return [side.name, f"{most:,.0f}", f"{most / their_most:.2f}", f"{their_seconds / seconds:.2f}"]

    rows = [row(side) for side in sides]
    columns = ["side", "peak, MB", "of the peer's", "speed, of the peer's"]
    title = f"Peak resident memory of a training step, {options.size}"
    notes = [
        f"{time.strftime('%Y-%m-%d')}, medians of {options.rounds} processes, {STEPS} steps each.",
        report.setting(describe(), versions),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep(f"memory {options.size}", report.markdown(title, columns, rows, notes))


if __name__ == "__main__":
    main()
