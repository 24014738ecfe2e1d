"""A tiny experiment of each method of fine-tuning, and a way to run them as a process of their own.

python -m tests.tune.methods TEXTS WORKDIR SECONDS NAME ... [FIELD=VALUE ...]: trains those NAMEs, each in a folder of
its own in WORKDIR; their steps last SECONDS longer.
"""

import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import value
from lm.data.loader import prepare
from lm.experiment import Experiment
from lm.model.families import llama
from lm.model.transformer import Transformer
from lm.run.models import SavedModels
from lm.run.prepared import tokenizer_of
from lm.sharding.batches import place_batch
from lm.sharding.mesh import make_mesh
from lm.train.step import build_rollout, build_step, init_state
from lm.tune.distill import Distill
from lm.tune.dpo import DPO
from lm.tune.kto import KTO
from lm.tune.lora import DoRA, LoRA
from lm.tune.orpo import ORPO
from lm.tune.simpo import SimPO
from lm.tune.trains import Only
from tests import tiny
from tests.tune import pairs, ranked, talks

TEACHER = llama(vocab=258, layers=1, width=24, heads=2, mlp=16, context=32)


def write(folder: Path) -> Path:
    """What they learn from."""
    tiny.write_texts(folder)
    for module in (talks, ranked, pairs):
        module.write(folder / f"{module.__name__.rpartition('.')[2]}.jsonl")
    return folder


def experiments(folder: Path) -> dict[str, Experiment]:
    """By name, on what `write` wrote, in float32 and without dropout, so that all devices take the same steps."""
    sft = talks.talking(folder / "talks.jsonl")
    distill = tiny.experiment(folder).replace(model=dict(dropout=0.0), method=Distill(None, TEACHER, temperature=2.0))
    preferring = {
        name: pairs.preferring(folder / "pairs.jsonl", method)
        for name, method in (("dpo", DPO()), ("simpo", SimPO()), ("orpo", ORPO()), ("kto", KTO()))
    }
    every = {
        "sft": sft,
        "sft-only": replace(sft, trains=Only("mlp|head/.*")),
        "sft-lora": replace(sft, trains=LoRA(rank=2, where="layers/.*|stem/tokens")),
        "sft-dora": replace(sft, trains=DoRA(rank=2)),
        "sft-nf4": replace(sft, trains=LoRA(rank=2, base="nf4")),
        "reward": ranked.ranking(folder / "ranked.jsonl"),
        **preferring,
        "dpo-lora": replace(preferring["dpo"], trains=LoRA(rank=2)),
        "distill": distill,
        "distill-cached": distill.replace(method=dict(top_k=20, cached=True)),
    }
    same = dict(prompts=(), compute=dict(matmul="float32"), model=dict(layers=1), ema=0.0)
    return {name: e.replace(same, name=name) for name, e in every.items()}


def first_updates(e: Experiment, mesh: dict[str, int], steps: int = 3) -> tuple[list[dict[str, float]], Any]:
    """The metrics of the first updates of `e` on a mesh of this process's devices, and the parameters after them."""
    over = make_mesh(mesh, jax.devices()[: int(np.prod(list(mesh.values())))])
    data = prepare(e.data, e.length, e.rows, e.seed, e.method.objective, tokenizer_of(e))
    learner = e.build(Transformer(e.model, e.compute.resolve("cpu")), data)
    learner.prepare(steps, SavedModels(e, Path("none"), over, e.rows))
    optimizer = e.optimizer.build(e.steps, learner.axes())
    state, found = init_state(learner, optimizer, over, e.seed), list[dict[str, float]]()
    step, rollout = build_step(learner, optimizer, over, e.seed), build_rollout(learner, over, e.seed)
    batches = learner.batches(0)
    for n in range(steps):
        state, metrics = step(state, rollout(n, state, place_batch(next(batches), over)))
        found.append({name: float(value) for name, value in metrics.items()})
    batches.close()
    return found, jax.device_get(state.params)


def main(folder: str, workdir: str, seconds: str, *words: str) -> None:
    every, settings = experiments(Path(folder)), [word for word in words if "=" in word]
    for name in (word for word in words if "=" not in word):
        e = reduce(value.parse, settings, every[name])
        tiny.run(e, Path(workdir) / name, float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
