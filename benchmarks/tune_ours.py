"""Worker of benchmarks/tune.py: this library's supervised fine-tuning of a GGUF file."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tune_job import BATCHES, LEARNING_RATE, RANK, batches
from benchmarks.worker import Train, serve

WHERE = "query|key|value|out|mlp"  # PEFT's all-linear


def build(settings: dict[str, Any]) -> Train:
    """As `lm train` starts it; with "rank" by LoRA, else every parameter."""
    from lm.machine import hardware

    hardware.prepare("cpu")
    import jax

    from lm.model.compute import Compute
    from lm.model.transformer import Transformer
    from lm.pretrained import open_model
    from lm.sharding.batches import place_batch
    from lm.sharding.mesh import make_mesh
    from lm.train.optim import AdamW
    from lm.train.program import Program
    from lm.train.schedule import Constant
    from lm.train.step import init_state
    from lm.tune.lora import LoRA
    from lm.tune.sft import SFT
    from lm.tune.trains import All

    hardware.use_compilation_cache(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    opened, mesh = open_model(settings["file"]), make_mesh()
    trains = LoRA(RANK, 2.0 * RANK, where=WHERE) if settings["lora"] else All()
    trains.check(opened.config)
    learner = trains.wrap(SFT().build(Transformer(opened.config, Compute(matmul=settings["dtype"]).resolve())))
    rule = AdamW(LEARNING_RATE, Constant(), 0.0, 0.0)
    state = init_state(learner, rule.build(1_000_000, learner.axes()), mesh, seed=0, start=opened.params(mesh))
    step = Program(learner, rule, mesh).step(rule, 1_000_000, seed=0)
    data, taken = [full(rows) for rows in batches(opened.config.vocab)], 0

    def train(steps: int) -> float:
        nonlocal state, taken
        for _ in range(steps):
            state, metrics = step(state, place_batch(data[taken % BATCHES], mesh))
            taken += 1
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return train


def full(rows: list[list[int]]) -> dict[str, np.ndarray]:
    """The batch of rows of tokens: each predicts the next one."""
    ids = np.array(rows, np.int32)
    tokens = ids[:, :-1]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    segments, weights = np.ones_like(tokens), np.ones(tokens.shape, np.float32)
    return {
        "tokens": tokens,
        "targets": ids[:, 1:],
        "weights": weights,
        "segment_ids": segments,
        "positions": positions,
    }


if __name__ == "__main__":
    serve(build, ["jax", "jaxlib", "flax", "optax"])
