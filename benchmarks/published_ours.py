"""Worker: this library with a published GGUF file, loaded as `lm sample` does."""

import os
from pathlib import Path
from typing import Any

from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """Load the file and give the first token of a prompt, then passes over settings["tokens"] random tokens."""
    from lm.machine import hardware

    hardware.prepare("cpu")
    import jax
    import numpy as np

    from lm.pretrained import load

    hardware.use_compilation_cache(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    model = load(settings["gguf"])
    print(model.generate(settings["prompt"], max_new_tokens=1), flush=True)
    ids = np.random.default_rng(0).integers(model.config.vocab, size=(1, settings["tokens"]))
    first = True

    def passes(count: int) -> float:
        nonlocal first
        if first:  # the first token was all that was asked for
            first = False
            return 0.0
        for _ in range(count):
            logits = jax.block_until_ready(model.logits(ids))
        return float(logits[0, -1, 0])

    return passes


if __name__ == "__main__":
    serve(build, ["jax", "jaxlib", "flax", "gguf"])
