"""Memory and seconds from a model's file to its first logits, and to its first token.

    python -m benchmarks.load model.gguf folder ... --against BUILD --keep
    python -m benchmarks.load --write /tmp/random

Each is loaded in a process of its own. Its memory is the most that was resident less what was after the imports; the
parameters are float32. BUILD is the folder of another build, measured in turn with this one. `--write` makes a random
Llama of 0.27 billion parameters first, in eight safetensors files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.machine import describe
from benchmarks.worker import ROOT

ENDS = ("logits", "token")
CHILD = """
import json, re, sys, time
import jax, numpy as np
jax.devices()
import lm.pretrained as pretrained, lm.decode.generate, gguf.quants, lm.text.gguf
def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before, begun = memory("VmRSS"), time.perf_counter()
model = pretrained.load(sys.argv[1])
loaded = time.perf_counter() - begun
if sys.argv[2] == "logits":
    np.asarray(model.logits([[1, 2, 3, 4]]))
else:
    next(iter(model.stream_ids([[1, 2, 3, 4]], 1)))
seconds = time.perf_counter() - begun
size = sum(a.nbytes for a in jax.tree.leaves(model.params))
print(json.dumps(dict(parameters=size, memory=memory("VmHWM") - before, loaded=loaded, seconds=seconds)))
"""


def measure(path: str, end: str, build: Path) -> dict[str, float]:
    """One load in a process of its own, with the modules of `build`."""
    command = [sys.executable, "-c", CHILD, path, end]
    ran = subprocess.run(command, cwd=build, env={**os.environ, "PYTHONPATH": str(build)}, capture_output=True)
    if ran.returncode:
        raise ValueError(f"{path} was not loaded:\n{ran.stderr.decode()[-2000:]}")
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def write_random(folder: Path, files: int = 8) -> None:
    """A random Llama of 0.27 billion parameters as a model directory of so many files."""
    import jax

    from lm.model.compute import Compute
    from lm.model.families import llama
    from lm.model.transformer import Transformer
    from lm.pretrained.model import Pretrained

    cfg = llama(vocab=32000, layers=16, width=1024, heads=16, kv_heads=8, mlp=3584, context=2048)
    model = Transformer(cfg, Compute(unroll=1).resolve())
    params = model.init(jax.random.key(0))
    size = sum(a.nbytes for a in jax.tree.leaves(params))
    Pretrained(cfg, params, None, model).save(folder, shard_bytes=int(1.04 * size / files))


def row(path: str, end: str, side: str, rounds: list[dict[str, float]]) -> list[str]:
    """A line of the table: medians over rounds."""
    median: dict[str, Any] = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    size, most = median["parameters"], median["memory"]
    cells = f"{size / 1e6:.0f}", f"{most / 1e6:.0f}", f"{most / size:.2f}"
    return [
        f"{Path(path).name} to the first {end}, {side}",
        *cells,
        f"{median['loaded']:.2f}",
        f"{median['seconds']:.2f}",
    ]


def main() -> None:
    """Measure, print the table, and with --keep write it to RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a GGUF file, or a model directory")
    parser.add_argument("--write", metavar="FOLDER", help="make a random model there, and measure it too")
    parser.add_argument("--against", metavar="BUILD", help="another build's folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    if options.write:
        write_random(Path(options.write))
        options.models.append(options.write)
    sides = {"this build": ROOT} | ({"the other": Path(options.against)} if options.against else {})
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for path in options.models:
            for end in ENDS:
                for side, build in sides.items():
                    found.setdefault((path, end, side), []).append(measure(os.path.abspath(path), end, build))
    title, columns = "Loading", ["", "parameters, MB", "memory, MB", "of parameters", "loaded, s", "to the end, s"]
    rows = [row(*key, rounds) for key, rounds in found.items()]
    notes = [
        f"{time.strftime('%Y-%m-%d')}, {options.rounds} rounds, medians. Memory: the most resident after the imports.",
        report.setting(describe(), {}),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep("load", report.markdown(title, columns, rows, notes))


if __name__ == "__main__":
    main()
