"""Ablations: what an arm may differ in, what is held equal, and that arms share what they can."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.denoise import SpanCorruption
from lm.model import count
from lm.model.compute import Compute
from lm.model.families import t5
from lm.model.parts import LayerNorm
from lm.model.positions import Alibi, Learned
from lm.model.transformer import Transformer
from lm.study.ablation import Ablation, match_flops
from lm.study.trial import step_flops, training_flops
from lm.tune.pretrain import Pretrain
from tests.tiny import experiment

BASE = experiment(Path("texts"))
ARMS: dict[str, Any] = {
    "rotary": {},
    "alibi": dict(model=dict(positions=Alibi())),
    "deep": dict(model=dict(layers=4)),
}


def test_every_arm_at_every_seed() -> None:
    trials = Ablation(BASE, ARMS, seeds=range(2), match="steps").trials()
    assert [(t.arm, t.seed) for t in trials] == [(a, s) for s in (0, 1) for a in ARMS]
    assert all(t.experiment.seed == t.seed and t.experiment.name == t.arm for t in trials)
    assert trials[1].experiment.model.positions == Alibi() and trials[0].experiment.model == BASE.model
    assert trials[4].folder(Path("s")) == Path("s/runs/alibi/1")
    assert trials == Ablation(BASE, ARMS, seeds=range(2), match="steps").trials()


def test_the_arm_without_changes_is_the_base() -> None:
    assert Ablation(BASE, ARMS).base_arm == "rotary"
    others = Ablation(BASE, {"alibi": ARMS["alibi"]}, seeds=[3])
    assert others.base_arm == "base" and [t.arm for t in others.trials()] == ["base", "alibi"]


@settings(max_examples=15, deadline=None)
@given(layers=st.integers(1, 6), mlp=st.integers(8, 200), steps=st.integers(30, 5000))
def test_arms_get_the_base_s_flops(layers: int, mlp: int, steps: int) -> None:
    study = Ablation(BASE.replace(steps=steps), {"other": dict(model=dict(layers=layers, ffn=dict(mlp=mlp)))})
    (base, resized), (arm, changes) = study.resolved.values()
    assert not resized and base.steps == steps
    assert abs(training_flops(arm) - training_flops(base)) <= 0.5 * training_flops(arm) / arm.steps
    assert changes == ({} if arm.steps == steps else {"steps": (steps, arm.steps)})


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_arms_get_the_base_s_parameters(layers: int) -> None:
    base = BASE.replace(model=dict(width=64))
    arm, resized = Ablation(base, {"other": dict(model=dict(layers=layers))}, match="params").resolved["other"]
    wanted = count.parameters(base.model)

    def off(width: int) -> int:
        return abs(count.parameters(replace(arm.model, width=width)) - wanted)

    assert resized == {"model.width": (64, arm.model.width)} and arm.steps == base.steps
    assert off(arm.model.width) <= min(off(arm.model.width - 8), off(arm.model.width + 8), off(64))


def test_a_budget_too_small_for_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="arm 'huge': the base's budget of .* FLOPs is too small for one step of"):
        Ablation(BASE, {"huge": dict(model=dict(layers=400))}).trials()


def test_arms_start_alike_and_read_alike() -> None:
    """The same first value of every parameter whose path and shape agree, whatever else is there."""
    arms = {"learned": dict(model=dict(positions=Learned())), "norms": dict(model=dict(norm=LayerNorm()))}
    trials = Ablation(BASE, arms, seeds=[5]).trials()
    compute = Compute().resolve("cpu")
    base, *others = (jax.jit(Transformer(t.experiment.model, compute).init)(jax.random.key(t.seed)) for t in trials)
    flat = dict(jax.tree_util.tree_leaves_with_path(base))
    for other in others:
        shared = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(other) if path in flat]
        assert len(shared) == len(flat)
        for path, leaf in shared:
            np.testing.assert_array_equal(leaf, flat[path])


def test_a_whole_experiment_differs_in_what_is_declared_alone() -> None:
    other = BASE.replace(model=dict(layers=3), method=dict(z_loss=1e-4))
    with pytest.raises(
        ValueError, match=r"arm 'x': it differs in method.z_loss \(0.0 in the base, 0.0001 here\), which"
    ):
        Ablation(BASE, {"x": other}, declared=("model.layers",)).trials()
    study = Ablation(BASE, {"x": other}, declared=("model", "method"), match="steps")
    assert [path for path, *_ in study.differences()["x"]] == ["model.layers", "method.z_loss"]


def test_what_arms_differ_in_is_told_with_what_was_resized() -> None:
    found = Ablation(BASE, ARMS).differences()
    assert found["rotary"] == []
    assert ("model.layers", 2, 4) in found["deep"] and any(path == "steps" for path, *_ in found["deep"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(arms={"base": dict(steps=5), "x": {}}), "arm 'base' has changes, .*: rename it"),
        (dict(arms={"base": BASE.replace(steps=5)}), "arm 'base' has changes, .*: rename it"),
        (dict(match="time"), "match='time': known: flops, params, steps"),
        (dict(seeds=[]), "expected different numbers"),
        (dict(seeds=[2**32]), "seeds=4294967296: expected at most 4,294,967,295"),
        (dict(seeds=[1, 1]), "expected different numbers"),
        (dict(arms={}), "expected at least one"),
        (dict(arms={"a/b": {}}), "arm 'a/b': expected letters"),
        (dict(arms={"x": dict(model=dict(layer=3))}), "arm 'x': ModelConfig has no field 'layer': did you mean layers"),
        (dict(arms={"x": dict(model=dict(context=8), seq_len=9)}), "arm 'x': seq_len=9 is longer"),
    ],
)
def test_mistakes(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ablation(**{"base": BASE, "arms": ARMS, **change}).trials()


def test_an_encoder_decoder_has_the_budget_of_what_it_reads_and_writes() -> None:
    model = t5(vocab=400, layers=2, width=16, heads=2, head_dim=8, mlp=32, context=64)
    arm = BASE.replace(model=model, method=Pretrain(objective=SpanCorruption()), batch_tokens=8 * 64)
    encoder, decoder = arm.lengths
    assert encoder == 64 and decoder < 32
    assert step_flops(arm) == 8 * count.flops_per_row(model, decoder, encoder)
    steps = match_flops(BASE, arm)["steps"][1]
    assert steps * step_flops(arm) == pytest.approx(training_flops(BASE), rel=0.5 / steps)
