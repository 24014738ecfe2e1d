"""Worker of benchmarks/tune.py: this library's fine-tuning of a GGUF file."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tune_job import BATCHES, BETA, LEARNING_RATE, RANK, batches
from benchmarks.worker import Train, serve

WHERE = "query|key|value|out|mlp"  # PEFT's all-linear


def build(settings: dict[str, Any]) -> Train:
    """As `lm train` starts it; with "lora" by adapters, else every parameter. With "dpo" on pairs, whose
    log-probabilities under the reference are there: as in every epoch but the first."""
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
    from lm.tune.dpo import DPO
    from lm.tune.lora import LoRA
    from lm.tune.preferences import REFERENCE
    from lm.tune.sft import SFT
    from lm.tune.trains import All

    hardware.use_compilation_cache(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    hardware.run_steps_in_turn()
    opened, mesh = open_model(settings["file"]), make_mesh()
    trains = LoRA(RANK, 2.0 * RANK, where=WHERE) if settings["lora"] else All()
    trains.check(opened.config)
    method = DPO(beta=BETA) if settings["dpo"] else SFT()
    learner = trains.wrap(method.build(Transformer(opened.config, Compute(matmul=settings["dtype"]).resolve())))
    rule = AdamW(LEARNING_RATE, Constant(), 0.0, 0.0)
    state = init_state(learner, rule.build(1_000_000, learner.axes()), mesh, seed=0, start=opened.params(mesh))
    step = Program(learner, rule, mesh).step(rule, 1_000_000, seed=0)
    data, taken = [full(rows) for rows in batches(opened.config.vocab)], 0
    if settings["dpo"]:
        data = [pairs(batch) for batch in data]
        for batch in data:
            placed = place_batch(batch, mesh)
            batch[REFERENCE] = learner.rollout(state.params, state.frozen, placed, jax.random.key(0))[REFERENCE]

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


def pairs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each two rows of a batch as one of a pair, its sides behind each other."""
    rows = {name: values.reshape(len(values) // 2, -1) for name, values in batch.items()}
    sides = np.repeat([1, 2], batch["tokens"].shape[1]).astype(np.int32)
    rows["segment_ids"] = np.broadcast_to(sides, rows["tokens"].shape)
    mask, ones = rows.pop("weights"), np.ones((len(rows["tokens"]), 1), np.float32)
    ids = batch["tokens"][:, :1].reshape(-1, 1, 2)  # as good as a hash of random tokens
    first = mask * (rows["segment_ids"] % 2)
    return {**rows, "loss_mask": mask, "first_weights": first, "weights": ones, "values": 0 * ones, "pair_ids": ids}


if __name__ == "__main__":
    serve(build, ["jax", "jaxlib", "flax", "optax"])
