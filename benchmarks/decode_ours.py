"""Worker of benchmarks/decode.py: this library; with "engine" requests are decoded by the engine, else in one batch."""

import os
from pathlib import Path
from typing import Any

from benchmarks.decode_jobs import JOBS, NEW, prompts
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """Load the file as `lm sample` does; greedy, and no id ends a text."""
    from lm.machine import hardware

    hardware.prepare("cpu")
    from lm.decode.engine import Engine, Request
    from lm.decode.generate import generate
    from lm.decode.sampling import Sampling
    from lm.pretrained import load

    hardware.use_compilation_cache(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    decoder, greedy = load(settings["file"], weights=settings.get("weights", "float32")).decoder, Sampling(0.0)
    vocab = decoder.model.cfg.vocab
    engine = Engine(*decoder, slots=16, length=256) if settings.get("engine") else None

    def run(number: int) -> float:
        job = JOBS[number]
        if job == "nothing":
            return 0.0
        rows, new = prompts(job, vocab), NEW[job]
        if engine:
            given = engine.generate([Request(row, new, Sampling(0.8 * (i % 2)), seed=i) for i, row in enumerate(rows)])
            return float(sum(map(len, given)))
        return float(sum(map(len, generate(decoder.model, decoder.params, rows, new, sampling=greedy))))

    return run


if __name__ == "__main__":
    serve(build, ["jax", "jaxlib", "flax"])
