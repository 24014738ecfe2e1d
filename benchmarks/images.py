"""Images, ours beside transformers: JPEG files to the pixels that a tower reads, and a SigLIP tower's forward pass.

    python -m benchmarks.images --peer-python /tmp/peers/bin/python

The peer needs torchvision too: its processor is the default, which resizes by it. Both sides read the same files of 640
by 480 pixels, by a thread a core as our loader does; a round times each side for some seconds, in turn. The towers have
the same sizes and read the same number of images a pass, in float32.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import report
from benchmarks.machine import Others, describe
from benchmarks.sides import caches
from benchmarks.worker import Worker

SIDES = {"transformers": "benchmarks.images_transformers", "ours": "benchmarks.images_ours"}
FILES, SIZE, PATCH, BATCH = 64, 224, 16, 8
TOWER = dict(layers=6, width=384, heads=6, mlp=1536)
PARTS = {"decode": "JPEG of 640 by 480 to 224 by 224", "tower": "tower, 6 layers of width 384, 196 patches"}


def write(folder: Path) -> None:
    """Files as cameras write them: large shapes, edges and some noise, at quality 90."""
    rng, y, x = np.random.default_rng(0), *np.mgrid[:480, :640].astype(np.float32)
    for i in range(FILES):
        waves = [np.sin(x / rng.uniform(5, 90) + y / rng.uniform(5, 90) + rng.uniform(0, 6)) for _ in range(9)]
        image = 128 + 40 * np.stack([sum(waves[c::3]) for c in range(3)], -1) + rng.normal(0, 5, (480, 640, 3))
        file = io.BytesIO()
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        (folder / f"{i}.jpg").write_bytes(file.getvalue())


def measure(part: str, folder: str, options: argparse.Namespace) -> tuple[list[list[str]], dict[str, str], float]:
    """The rows of one part, the versions, and the share of the cores that others used."""
    settings: dict[str, Any] = dict(part=part, folder=folder, size=SIZE, patch=PATCH, batch=BATCH, tower=TOWER)
    settings["threads"] = os.cpu_count()
    pythons = {"transformers": options.peer_python, "ours": sys.executable}
    workers = {n: Worker(module, settings, pythons[n], caches(folder)) for n, module in SIDES.items()}
    images, rates, shares = FILES if part == "decode" else BATCH, {n: list[float]() for n in SIDES}, []
    spent = {n: list[float]() for n in SIDES}  # milliseconds of a core, an image
    steps = {n: max(1, round(options.seconds / max(worker.train(3) / 3, 1e-3))) for n, worker in workers.items()}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            others, before = Others(worker.cpu_seconds()), worker.cpu_seconds()
            rates[name].append(images * steps[name] / worker.train(steps[name]))
            shares.append(others.share(worker.cpu_seconds()))
            spent[name].append(1e3 * (worker.cpu_seconds() - before) / (images * steps[name]))
    for worker in workers.values():
        worker.close()
    rows = []
    for name in SIDES:
        ratios = [a / b for a, b in zip(rates[name], rates["transformers"], strict=True)]
        median = f"{statistics.median(rates[name]):,.0f}"
        rows.append([f"{PARTS[part]}: {name}", median, f"{statistics.median(ratios):.2f}"])
        rows[-1] += [f"{min(ratios):.2f} - {max(ratios):.2f}", f"{statistics.median(spent[name]):.1f}"]
    return rows, {k: v for worker in workers.values() for k, v in worker.versions.items()}, max(shares)


def main() -> None:
    """Measure, print the table, and with --keep write it to RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="one with transformers, torchvision and Pillow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a side in a round")
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    rows, versions, most = list[list[str]](), dict[str, str](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for part in PARTS:
            own, known, share = measure(part, folder, options)
            rows, versions, most = rows + own, versions | known, max(most, share)
    title, columns = "Images", ["side", "images/s", "ratio", "range", "core ms an image"]
    notes = [
        f"{time.strftime('%Y-%m-%d')}, {options.rounds} rounds of some {options.seconds:g} s a side, in turn; medians.",
        f"Others used at most {most:.0%} of the cores in a round.",
        report.setting(describe(), versions),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep("images", report.markdown(title, columns, rows, notes))


if __name__ == "__main__":
    main()
