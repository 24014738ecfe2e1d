"""Smoke tests of experiments: small by rules, with every kind of part still there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from launch.__main__ import main
from launch.find import find, known
from launch.find import load as load_page
from lm.data.denoise import UL2
from lm.experiment import Experiment
from lm.model import count
from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.families import deepseek_v2, llama
from lm.model.shared_experts import SharedExperts
from lm.model.transformer import Transformer
from lm.plan.compile import batch_shapes
from lm.run.smoke import LENGTH, ROWS, SIZES, STEPS, smoke
from lm.text.tokenizer import TokenizerFile
from lm.train.schedule import WSD
from tests.tiny import experiment

TINY = experiment(Path("texts"))


def pages() -> dict[str, str]:
    """Every experiment and published size of the pages, by its name."""
    found = {}
    for page in known():
        if page.startswith("experiments."):
            for name, one in vars(load_page(page)).items():
                if isinstance(one, Experiment | ModelConfig) and not name.startswith("_"):
                    found[f"{page}:{name}"] = page
    return found


def kinds(model: ModelConfig) -> set[Any]:
    """The classes of all parts."""
    parts = [model.norm, model.positions, model.wiring, model.output, model.parametrisation]
    return {type(one) for one in parts} | {
        (type(slot.mixer), type(slot.ffn), type(slot.positions), slot.window > 0) for slot in model.by_layer
    }


@pytest.mark.parametrize("reference", pages())
def test_any_experiment_is_small_and_has_all_its_parts(reference: str) -> None:
    e, _ = find(reference)
    small = smoke(e)
    assert small.steps == min(STEPS, e.steps) and small.length <= LENGTH and small.on(1).rows == ROWS * small.accumulate
    assert small.optimizer.schedule.warmup_steps <= STEPS // 4 and small.eval_every_steps <= STEPS // 2
    assert kinds(small.model) == kinds(e.model) and small.model.has_encoder == e.model.has_encoder
    data = replace(e.data, tokenizer=TokenizerFile(e.start.path)) if e.start else e.data
    assert (type(small.method), type(small.optimizer), small.data) == (type(e.method), type(e.optimizer), data)
    assert small.model.width <= SIZES["width"] and small.model.layers <= max(
        2, len(e.model.first_layers) + len(e.model.pattern)
    )
    assert small.flops_per_token * small.on(1).batch_tokens * STEPS < 2e12  # seconds on a laptop
    assert small.name == f"{e.name}-smoke" and small.mesh == {}


@pytest.mark.parametrize(
    "page",
    [
        "gpt:gpt_oss_120b",
        "gemma:gemma3_1b",
        "t5:t5_11b",
        "ul2",
        "bert",
        "mixtral:mixtral_8x7b",
        "gemma:gemma3_4b_vision",
        "vision.shapes",
    ],
)
def test_it_takes_a_step(page: str) -> None:
    """Traced, not run: every shape fits every other."""
    e = smoke(find(f"experiments.{page}")[0]).on(1)
    learner = e.method.build(Transformer(e.model, e.compute.resolve("cpu")))
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in batch_shapes(e).items()}
    loss, _ = jax.eval_shape(lambda params, b: learner.loss(params, (), b, None), learner.model.shapes(), batch)
    assert loss.shape == ()


def test_sizes_still_divide_and_first_layers_stay() -> None:
    model = deepseek_v2(vocab=300, layers=27, width=2048, heads=12, mlp=10944, context=4096)
    first = (LayerKind(), LayerKind(window=1000))
    small = smoke(TINY.replace(model=replace(model, first_layers=first), seq_len=32)).model
    assert (small.layers, small.width, small.ffn.mlp, small.vocab) == (3, 64, 128, 300)
    assert (small.attention.heads, small.attention.kv_lora_rank, small.first_layers[1].window) == (4, 32, 64)
    assert count.parameters(small) < 300_000
    odd = smoke(TINY.replace(model=llama(vocab=258, layers=3, width=48, heads=3, mlp=80, context=32))).model
    assert (odd.width, odd.attention.heads, odd.attention.kv, odd.ffn.mlp) == (32, 2, 2, 64)


@pytest.mark.parametrize(
    "sizes", [(256, 8, 8, 4, 2), (3, 2, 3, 2, 1), (64, 6, 8, 1, 8), (6, 1, 6, 1, 1), (9, 9, 1, 1, 9)]
)
def test_groups_of_experts_still_hold_what_is_taken(sizes: tuple[int, ...]) -> None:
    """As DeepSeek-V3 has them, and at the ends of what is legal."""
    experts, top_k, groups, top_groups, best = sizes
    grouped = dict(groups=groups, top_groups=top_groups, group_best=best)
    ffn = SharedExperts(10, experts=experts, top_k=top_k, shared=20, **grouped)
    small = smoke(TINY.replace(model=replace(TINY.model, ffn=ffn))).model.ffn
    assert isinstance(small, SharedExperts) and small.experts <= 4 and small.groups == min(groups, 2)


def test_what_is_small_stays() -> None:
    small = smoke(TINY.replace(optimizer=dict(schedule=WSD(warmup_steps=1, decay_steps=3)), steps=8))
    assert small.steps == 8 and small.optimizer.schedule == WSD(warmup_steps=1, decay_steps=2 + 1)
    assert small.model == replace(TINY.model, attention=small.model.attention)
    assert smoke(TINY.replace(eval_tokens=100, log_every_steps=1)).eval_tokens == 100


def test_the_vocabulary_is_what_tokenizer_and_objective_need() -> None:
    e, _ = find("experiments.t5:t5_11b")
    assert smoke(e).model.vocab == 4096 + 100
    assert smoke(e.replace(method=dict(objective=UL2()))).model.vocab == 4096 + 103
    assert smoke(TINY.replace(compute=Compute())).model.vocab == 258  # of bytes nothing is known


def test_train_takes_settings_after_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("lm.machine.hardware.prepare", lambda devices="": None)
    monkeypatch.setattr("lm.run.course.train", lambda *args: seen.extend(args))
    assert main(["train", "experiments.llama:llama3_70b", "--smoke", "--set", "steps=7", "model.width=32"]) == 0
    e, workdir, reference, *_ = seen
    assert (e.steps, e.model.width, e.model.layers, workdir) == (7, 32, 2, "runs/llama3_70b-smoke")
    assert reference == "experiments.llama:llama3_70b"
