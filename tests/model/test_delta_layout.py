"""Gated DeltaNet as others see it: decayed, laid over a mesh, counted, planned and checked."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from experiments.llama import experiment as small
from lm import value
from lm.legal import check_mesh
from lm.model import count
from lm.model.config import LayerKind, ModelConfig
from lm.model.delta import GatedDeltaNet
from lm.model.parametrisation import MuP
from lm.model.positions import Alibi, Positions
from lm.model.transformer import Transformer
from lm.plan import analytic
from lm.plan.topology import parse_topology
from lm.sharding.mesh import make_mesh
from lm.sharding.tracing import use_mesh
from lm.train.optim import AdamW
from tests.model.reference import (
    DELTA,
    LLAMA,
    SIMPLE,
    lively,
    mean_loss,
    run,
    tokens,
    trees_close,
)
from tests.model.test_delta import MIXER, PAIR, alone, batch


def test_vectors_do_not_decay() -> None:
    axes = Transformer(alone(), SIMPLE).axes()
    mask = AdamW().decay_mask(axes)["layers"]["0"]
    matrices = {"query", "key", "value", "out_gate", "beta", "decay", "out", "gate", "up", "down"}
    assert {name for name, decays in mask.items() if decays} == matrices
    assert {"A_log", "dt_bias", "query_conv", "key_conv", "value_conv", "value_norm_scale"} < set(mask)


# ---------------------------------------------------------------- over a mesh

OVER = small.replace(model=replace(DELTA, vocab=40), batch_tokens=64 * 24)


def test_heads_are_split_over_tensor_and_rows_over_data() -> None:
    model, params = Transformer(PAIR, SIMPLE), lively(PAIR)
    given = batch()
    expected = jax.jit(jax.value_and_grad(partial(mean_loss, model)))(params, given)
    with use_mesh(make_mesh({"tensor": 2, "data": 2}, jax.devices()[:4])):
        compiled = jax.jit(jax.value_and_grad(partial(mean_loss, model))).lower(params, given).compile()
        trees_close(compiled(params, given), expected, 3e-4)
    program = compiled.as_text()
    assert "f32[1,2,6,3]" in program and "f32[2,4,6,3]" not in program  # a device's part of a state


@pytest.mark.parametrize("mesh", [{"tensor": 4, "data": 2}, {"tensor": 2, "fsdp": 2}], ids=str)
def test_meshes_that_will_do(mesh: dict[str, int]) -> None:
    check_mesh(OVER, mesh)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"context": 2}, "context=2 splits rows, which GatedDeltaNet reads in order: set context=1"),
        ({"tensor": 8}, r"pattern\[0\].mixer.value_heads=4 .* mesh tensor=8: try tensor=2 or tensor=4"),
    ],
    ids=str,
)
def test_meshes_that_will_not_do(mesh: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mesh(OVER, mesh)


# ---------------------------------------------------------------- counted and planned


def test_count_by_hand() -> None:
    cfg = alone()
    D, key, inner, N = 16, 2 * 6, 4 * 3, 4
    weights = D * (2 * key + 2 * inner + 2 * N) + inner * D
    vectors = 3 * (2 * key + inner) + 2 * N + 3
    rest = 2 * D + 3 * D * 20 + 2 * 41 * D + D
    assert count.parameters(cfg) == weights + vectors + rest
    products = 6 * (weights + 3 * D * 20 + 41 * D)
    for length in (8, 8000):
        assert count.flops_per_token(cfg, length) == products + 3 * 6 * N * 6 * 3
    assert sum(MIXER.products(D).values()) == 2 * weights
    assert MIXER.activations(2) == dict(query=6, key=6, value=(2 * inner + 2 * N) / 2, attention=inner / 2)
    assert MIXER.activations(8)["key"] == 6


def test_a_plan_by_arithmetic() -> None:
    state = LayerKind(mixer=GatedDeltaNet(8, 16, 128, 128))
    topology = parse_topology("v5p:4x4x4")
    full = small.replace(mesh=dict(fsdp=64), batch_tokens=64 * small.length, compute=dict(remat="minimal")).on(64)
    mixed = full.replace(model=dict(pattern=(state,) * 3 + (LayerKind(),)))
    plans = [analytic.plan(e, topology) for e in (full, mixed)]
    assert plans[1].model_flops == count.flops_per_token(mixed.model, mixed.length) * mixed.batch_tokens / 64
    assert all(np.isfinite(list(plan.memory.values())).all() for plan in plans)
    assert plans[0].memory["peak"] != plans[1].memory["peak"]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(value_heads=3), "value_heads=3 is not a multiple of key_heads=2: try 4"),
        (dict(chunk=48), "chunk=48: expected a power of two, as 32"),
        (dict(conv_size=0), "GatedDeltaNet.conv_size=0: expected at least 1"),
        (dict(key_dim=0), "key_dim=0"),
    ],
    ids=str,
)
def test_bad_sizes(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MIXER, **changes)


def test_models_that_it_does_not_serve() -> None:
    in_order = "GatedDeltaNet reads all earlier tokens of a row and no later one"
    with pytest.raises(ValueError, match=f"{in_order}.* not window=3 and causal=True"):
        replace(DELTA, pattern=(LayerKind(window=3, mixer=MIXER),))
    with pytest.raises(ValueError, match=f"{in_order}.* not window=0 and causal=False"):
        replace(DELTA, causal=False)
    with pytest.raises(ValueError, match="GatedDeltaNet takes no bias by distance: Alibi adds one"):
        replace(DELTA, positions=Alibi())
    replace(DELTA, positions=Alibi(), pattern=(LayerKind(mixer=MIXER, positions=Positions()), LayerKind()))
    with pytest.raises(ValueError, match="MuP says nothing of GatedDeltaNet"):
        replace(DELTA, parametrisation=MuP(16))
    model, ids = Transformer(alone(), SIMPLE), tokens(DELTA, 1, 6)
    with pytest.raises(ValueError, match="reads a prefix or an image in order too: take data that has none"):
        run(model, lively(alone()), ids, blocks=np.ones((1, 6), np.int32))
    both = replace(alone(), encoder=replace(LLAMA, causal=False))
    with pytest.raises(ValueError, match="GatedDeltaNet reads no encoder"):
        Transformer(both, SIMPLE).shapes()


def test_it_is_set_by_its_value() -> None:
    changed = value.parse(small, "model.attention=GatedDeltaNet(key_heads=2, value_heads=4, key_dim=8, value_dim=16)")
    assert changed.model.attention == GatedDeltaNet(2, 4, 8, 16)
    assert value.build(ModelConfig, value.plain(DELTA)) == DELTA
