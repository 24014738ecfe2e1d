"""Worker: this library's model, optimizer and step, at the sizes and with the choices of the peers."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sizes import BATCHES, BETAS, CLIP, DECAY, LEARNING_RATE, SIZES, Size
from benchmarks.worker import Train, serve

Batch = dict[str, np.ndarray]


def batches(size: Size, packed: bool) -> list[Batch]:
    """BATCHES batches of random tokens, arrays [B, T]; `packed`: with segment ids and positions, one document a row."""
    shape = size.batch, size.seq
    data = np.random.default_rng(0).integers(size.vocab, size=(BATCHES, size.batch, size.seq + 1), dtype=np.int32)
    same: Batch = {"weights": np.ones(shape, np.float32)}
    if packed:
        positions = np.broadcast_to(np.arange(size.seq, dtype=np.int32), shape)
        same |= {"segment_ids": np.ones(shape, np.int32), "positions": positions}
    return [{"tokens": d[:, :-1], "targets": d[:, 1:], **same} for d in data]


def model_config(size: Size) -> Any:
    """The ModelConfig that is the peer's model: nanoGPT without biases and with the exact gelu, the others tied."""
    from lm.model import families
    from lm.model.parts import FeedForward

    common = {name: getattr(size, name) for name in ("vocab", "layers", "width", "heads")} | {"context": size.seq}
    if size.peer == "llama":
        return families.llama(**common, mlp=size.mlp, tied=True)
    if size.peer == "mixtral":
        no_losses = {"load_balance_weight": 0.0, "router_z_weight": 0.0}
        return families.mixtral(**common, mlp=size.mlp, tied=True, experts=size.experts, **no_losses)
    return families.gpt(**common, bias=False, ffn=FeedForward(mlp=size.mlp, activation="gelu"))


def build(settings: dict[str, Any]) -> Train:
    """Starts as `lm train` does, then trains on numpy batches: their way to the device is in the time."""
    from lm.machine import hardware

    hardware.prepare("cpu")
    import jax

    from lm.model.compute import Compute
    from lm.model.transformer import Transformer
    from lm.sharding.batches import place_batch
    from lm.sharding.mesh import make_mesh
    from lm.train.optim import AdamW
    from lm.train.program import Program
    from lm.train.schedule import Constant
    from lm.train.step import compile_in_thread, init_state, state_shardings
    from lm.tune.pretrain import Pretrain

    hardware.use_compilation_cache(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    hardware.run_steps_in_turn()
    hardware.set_cpu_devices(settings["devices"])
    size, mesh = SIZES[settings["size"]], make_mesh()
    compute = Compute(matmul=settings["dtype"], remat=settings["remat"]).resolve()
    learner = Pretrain().build(Transformer(model_config(size), compute))
    rule = AdamW(LEARNING_RATE, Constant(), DECAY, CLIP, b1=BETAS[0], b2=BETAS[1])
    chain, data, taken = rule.build(1_000_000, learner.axes()), batches(size, settings["packed"]), 0
    step = Program(learner, rule, mesh).step(rule, 1_000_000, seed=0)
    compiling = compile_in_thread(step, state_shardings(learner, chain, mesh)[0], place_batch(data[0], mesh))
    state = init_state(learner, chain, mesh, seed=0)
    compiling.join()

    def train(steps: int) -> float:
        nonlocal state, taken
        for _ in range(steps):
            state, metrics = step(state, place_batch(data[taken % BATCHES], mesh))
            taken += 1
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return train


if __name__ == "__main__":
    serve(build, ["jax", "jaxlib", "flax", "optax"])
