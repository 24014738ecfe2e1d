"""The same losses on any mesh: nine families over every mesh axis, against one device.

    python -m tests.identity [FAMILY ...]      the whole matrix, a line each; fails where one does not agree

The families are tiny, their rows packed, padded, and in float32. tests/test_identity.py runs a part of the matrix.
"""

import os
import sys
import time
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np

STEPS, ROWS, LENGTH, VOCAB = 20, 8, 32, 32
TOLERANCE = 5e-5  # relative, on each of the 20 losses: float32 sums in other orders, and 20 steps on them

MESHES: tuple[dict[str, int], ...] = (
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"fsdp": 4, "tensor": 2},
    {"context": 8},
    {"context": 2, "fsdp": 4},
    {"replica": 2, "fsdp": 4},
    {"context": 2, "tensor": 2, "data": 2},
)
EXPERT_MESHES: tuple[dict[str, int], ...] = (
    {"expert": 4, "data": 2},
    {"expert": 2, "tensor": 2, "context": 2},
    {"expert": 2, "fsdp": 2, "tensor": 2},
)
LAYOUTS: tuple[tuple[dict[str, int], dict[str, Any]], ...] = (
    ({"fsdp": 4, "tensor": 2}, dict(sequence_parallel=True)),
    ({"context": 2, "tensor": 2, "data": 2}, dict(sequence_parallel=True)),
    ({"fsdp": 4, "data": 2}, dict(zero_stage=1, offload_optimizer=True)),
    ({"data": 8}, dict(zero_stage=1)),
    ({"fsdp": 8}, dict(offload_optimizer=True)),
)


def families() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> a model, and how it is computed: between them every portable kernel and remat policy."""
    from lm.model.config import LayerKind, MultiToken
    from lm.model.delta import GatedDeltaNet
    from lm.model.families import bert, deepseek_v2, gpt, llama, mixtral, t5
    from lm.model.gated import GatedAttention
    from lm.model.hybrids import gemma4_moe
    from lm.model.parts import RMSNorm

    sizes: dict[str, Any] = dict(vocab=VOCAB, width=16, heads=8, context=LENGTH)
    latent = dict(qk_nope_head_dim=2, qk_rope_head_dim=4, v_head_dim=3, kv_lora_rank=8, q_lora_rank=16)
    mixture = mixtral(**sizes, layers=2, mlp=16, kv_heads=4, experts=4, top_k=2)
    # what little the first tokens read is not to be blown up by its norm, rounding and all
    state = LayerKind(mixer=GatedDeltaNet(2, 8, key_dim=8, value_dim=4, chunk=8, norm=RMSNorm(eps=0.1)))
    gated = GatedAttention(heads=8, head_dim=2, kv_heads=4)
    hybrid = llama(**sizes, layers=2, mlp=16, pattern=(state, LayerKind()), attention=gated)
    reading = gemma4_moe(
        **dict(
            sizes, layers=2, mlp=16, kv_heads=4, head_dim=4, full_head_dim=4, every=1, shared=1, per_layer=8, eps=0.1
        ),
        **dict(experts=4, top_k=2, expert_mlp=16, load_balance_weight=0.1),
    )
    return {
        "gpt": (gpt(**sizes, layers=2), dict(attention="blocked", block=8)),
        "llama": (llama(**sizes, layers=2, mlp=16, kv_heads=2), dict(attention="flash", block=4, remat="minimal")),
        "mixtral": (
            replace(mixture, ffn=replace(mixture.ffn, load_balance_weight=0.1)),
            dict(attention="plain", remat="full"),
        ),
        "latent": (deepseek_v2(**sizes, **latent, layers=2, mlp=16), dict(attention="blocked", block=8, remat="dots")),
        "t5": (t5(**sizes, layers=2, mlp=16, head_dim=2), dict(attention="flash", block=8)),
        "bert": (bert(**sizes, layers=2, mlp=16), dict(attention="plain", remat="offload")),
        "gated deltanet": (hybrid, dict(attention="plain", remat="dots")),
        "multi-token": (
            replace(llama(**sizes, layers=2, mlp=16), multi_token=MultiToken(2)),
            dict(attention="blocked", block=8, remat="minimal"),
        ),
        "gemma4": (reading, dict(attention="plain", remat="minimal")),
    }


def batch(cfg: Any, seed: int) -> dict[str, np.ndarray]:
    """Rows of two documents and, in some, padding; for an encoder-decoder a shorter one that its encoder reads for."""
    rng = np.random.default_rng(seed)
    length = 13 if cfg.has_encoder else LENGTH
    cut, end = rng.integers(length // 4, length // 2, (ROWS, 1)), rng.integers(length * 3 // 4, length + 1, (ROWS, 1))
    at = np.arange(length)
    segments = np.where(at < end, 1 + (at >= cut), 0).astype(np.int32)
    draw = lambda n: rng.integers(0, VOCAB, (ROWS, n)).astype(np.int32)  # noqa: E731
    found = {
        "tokens": draw(length),
        "targets": draw(length),
        "weights": (segments > 0).astype(np.float32),
        "segment_ids": segments,
        "positions": np.where(at < cut, at, at - cut).astype(np.int32),
    }
    if cfg.has_encoder:
        seen = 1 + (np.arange(LENGTH) >= rng.integers(8, 24, (ROWS, 1)))
        found |= {"encoder_tokens": draw(LENGTH), "encoder_segment_ids": seen.astype(np.int32)}
    return found


@cache
def begun(family: str) -> Any:
    """(the learner, the optimizer, the state before the first step) of a family: drawn once, on one device; that a mesh
    draws the same is a test of tests/test_identity.py."""
    from lm.model.compute import Compute
    from lm.model.transformer import Transformer
    from lm.sharding.mesh import make_mesh
    from lm.train.optim import AdamW
    from lm.train.schedule import Constant
    from lm.train.step import init_state
    from lm.tune.pretrain import Pretrain

    cfg, how = families()[family]
    compute = replace(Compute(matmul="float32", flat="no", unroll=1, loss_chunk=8, **how).resolve("cpu"))
    learner = Pretrain(z_loss=1e-3).build(Transformer(cfg, compute))
    # a router's choice flips where two logits are within rounding, and so does the sign of what a first token reads,
    # normalised: small steps keep both rare
    rate = {"mixtral": 2e-3, "gemma4": 1e-3, "gated deltanet": 1e-3}.get(family, 1e-2)
    chain = AdamW(learning_rate=rate, eps=1e-3, schedule=Constant()).build(STEPS, learner.axes())
    return learner, chain, jax.device_get(init_state(learner, chain, make_mesh({"data": 1}, jax.devices()[:1]), 0))


def run(family: str, mesh: dict[str, int] | None, steps: int = STEPS, **layout: Any) -> Any:
    """(the losses of so many steps, the step, the last state) of a family on a mesh; None: one device."""
    from lm.sharding.batches import place_batch
    from lm.sharding.mesh import make_mesh
    from lm.sharding.rules import Layout
    from lm.train.step import build_step, state_shardings

    learner, chain, first = begun(family)
    over = make_mesh(mesh) if mesh else make_mesh({"data": 1}, jax.devices()[:1])
    state = jax.device_put(first, state_shardings(learner, chain, over, layout=Layout(**layout))[1])
    step = build_step(learner, chain, over, layout=Layout(**layout))
    losses = []
    for n in range(steps):
        state, metrics = step(state, place_batch(batch(learner.model.cfg, n), over))
        losses.append(float(metrics["total"]))
    return np.array(losses), step, state


@cache
def alone(family: str, steps: int = STEPS) -> np.ndarray:
    """The losses on one device."""
    return run(family, None, steps)[0]


def matrix(names: list[str]) -> list[tuple[str, dict[str, int], dict[str, Any]]]:
    """Everything that the whole matrix holds: a state's rows are on one device each."""
    cells = [(n, mesh, {}) for n in names for mesh in MESHES if n != "gated deltanet" or "context" not in mesh]
    cells += [(n, mesh, {}) for n in ("mixtral", "gemma4") if n in names for mesh in EXPERT_MESHES]
    return cells + [(name, mesh, dict(o)) for name in ("llama", "mixtral") if name in names for mesh, o in LAYOUTS]


def main(names: list[str]) -> int:
    """Run the matrix for these families (none: all); 1 where a cell does not agree."""
    failed = 0
    for name, mesh, layout in matrix(names or list(families())):
        start = time.perf_counter()
        try:
            losses = run(name, mesh, **layout)[0]
            worst = float(np.max(np.abs(losses / alone(name) - 1)))
        except Exception as error:  # the other cells are to run too
            worst, losses = float("nan"), np.array([])
            print(f"{type(error).__name__}: {str(error)[:1500]}", flush=True)
        good = worst <= TOLERANCE
        failed += not good
        where = " ".join(f"{axis}={n}" for axis, n in mesh.items()) + "".join(f" {k}={v}" for k, v in layout.items())
        print(
            f"{'ok  ' if good else 'FAIL'} {name:8} {where:42} {worst:.1e} {time.perf_counter() - start:5.1f} s",
            flush=True,
        )
    print(f"{failed} cells do not agree")
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # a busy machine may keep one of eight devices waiting for long; XLA would take it for stuck, and abort
    patient = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    os.environ.setdefault("XLA_FLAGS", f"--xla_backend_optimization_level=0 {patient}")
    jax.config.update("jax_num_cpu_devices", 8)
    sys.exit(main(sys.argv[1:]))
