"""Experts against a loop over tokens, and the losses of their router."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model import ragged
from lm.model.compute import Compute
from lm.model.config import LayerKind
from lm.model.experts import Experts
from lm.model.families import mixtral
from lm.model.inputs import Inputs
from lm.model.parts import FeedForward
from lm.model.transformer import Transformer
from lm.sharding.mesh import make_mesh
from lm.sharding.shardings import shardings
from lm.sharding.tracing import use_mesh
from tests.model.reference import LLAMA, SIMPLE, close, extend, lively, run, silu, tokens, trees_close

CFG = mixtral(vocab=29, layers=2, width=12, heads=2, mlp=10, context=24, experts=5, top_k=2)


def module_of(ffn: FeedForward, x: np.ndarray, params: dict[str, Any]) -> Any:
    from flax import linen as nn

    class One(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return ffn(self, x, SIMPLE, 1)

    return jax.jit(partial(One().apply, mutable=["losses"]))({"params": params}, x)


def arrays(ffn: Experts, width: int) -> dict[str, np.ndarray]:
    rng, E, F = np.random.default_rng(0), ffn.experts, ffn.mlp
    shapes = dict(router=(width, E), gate=(E, width, F), up=(E, width, F), down=(E, F, width))
    if ffn.bias:
        shapes |= dict(router_bias=(E,), gate_bias=(E, F), up_bias=(E, F), down_bias=(E, width))
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_each_token_is_its_chosen_experts_sum(renormalize: bool, bias: bool) -> None:
    ffn = Experts(
        mlp=10, activation="silu", gated=True, bias=bias, router_bias=bias, experts=5, renormalize=renormalize
    )
    x, p = np.random.default_rng(1).standard_normal((2, 7, 12)).astype(np.float32), arrays(ffn, 12)
    found, _ = module_of(ffn, x, p)
    expected = np.zeros(x.shape)
    for b, t in np.ndindex(2, 7):
        logits = x[b, t] @ p["router"] + p.get("router_bias", 0.0)
        best = np.argsort(-logits)[:2]
        weights = np.exp(logits[best]) / np.exp(logits[best] if renormalize else logits).sum()
        for e, weight in zip(best, weights, strict=True):
            gate, up = (x[b, t] @ p[n][e] + (p[f"{n}_bias"][e] if bias else 0) for n in ("gate", "up"))
            expected[b, t] += weight * ((silu(gate) * up) @ p["down"][e] + (p["down_bias"][e] if bias else 0))
    close(found, expected)


def test_equal_experts_are_one_feed_forward() -> None:
    dense = replace(CFG, ffn=FeedForward(mlp=10, activation="silu", gated=True))
    params, ids = jax.device_get(lively(dense)), tokens(dense, 2, 11)
    wide = dict(params["layers"]["0"])
    for name in ("gate", "up", "down"):
        wide[name] = np.repeat(wide[name][:, None], 5, axis=1)
    wide["router"] = lively(CFG)["layers"]["0"]["router"]
    same = run(Transformer(CFG, SIMPLE), {**params, "layers": {"0": wide}}, ids)
    close(same, run(Transformer(dense, SIMPLE), params, ids))


def test_a_balanced_router_has_the_least_loss() -> None:
    """With a router that prefers nobody the loss is balance times the number chosen; one that always takes the same
    experts has more."""
    ffn = Experts(mlp=10, experts=5, top_k=2, load_balance_weight=0.5, router_z_weight=0.1)
    x = np.random.default_rng(1).standard_normal((2, 50, 12)).astype(np.float32)
    p = {name: a for name, a in arrays(ffn, 12).items() if name != "gate"}
    losses = module_of(ffn, x, p | {"router": np.zeros((12, 5), np.float32)})[1]["losses"]
    assert float(losses["balance"]) == pytest.approx(0.5 * 2)
    assert float(losses["router_z"]) == pytest.approx(0.1 * np.log(5) ** 2, rel=1e-5)
    steep = np.zeros((12, 5), np.float32)
    steep[:, :2] = 5.0
    assert float(module_of(ffn, np.abs(x), p | {"router": steep})[1]["losses"]["balance"]) > 2.0


def test_the_router_computes_in_float32() -> None:
    """Whatever the activations are in (2101.03961, section 2.4)."""
    ffn = Experts(mlp=10, experts=5, router_z_weight=1.0)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 50, 12)), jnp.bfloat16)
    p = {name: a for name, a in arrays(ffn, 12).items() if name != "gate"}
    found, expected = (module_of(ffn, a, p)[1]["losses"]["router_z"] for a in (x, x.astype(jnp.float32)))
    assert float(found) == float(expected)


def test_losses_are_means_over_the_layers() -> None:
    """Of routers that prefer nobody, in three layers of two slots."""
    ffn = replace(CFG.ffn, load_balance_weight=0.5, router_z_weight=0.1)
    cfg = replace(CFG, layers=3, ffn=ffn, pattern=CFG.pattern * 2)
    flat = lambda path, a: a * 0 if path[-1].key == "router" else a  # noqa: E731
    params = jax.tree_util.tree_map_with_path(flat, lively(cfg))
    losses = jax.jit(Transformer(cfg, SIMPLE).hidden)(params, tokens(cfg, 2, 11)).losses
    assert float(losses["balance"]) == pytest.approx(0.5 * ffn.top_k, rel=1e-5)
    assert float(losses["router_z"]) == pytest.approx(0.1 * np.log(ffn.experts) ** 2, rel=1e-5)


def test_the_losses_reach_the_caller_and_the_router() -> None:
    cfg = replace(CFG, ffn=replace(CFG.ffn, load_balance_weight=1.0, router_z_weight=1.0))
    model, ids = Transformer(cfg, SIMPLE), tokens(cfg, 2, 11)
    total = lambda p: sum(model.hidden(p, ids).losses.values())  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(total))(lively(cfg))
    assert float(value) > 1.0 and np.abs(gradient["layers"]["0"]["router"]).max() > 0
    assert jax.eval_shape(Transformer(LLAMA, SIMPLE).hidden, lively(LLAMA), ids).losses == {}


@partial(jax.jit, static_argnums=0)
def router_losses(model: Transformer, params: Any, inputs: Inputs) -> Any:
    """The gradient of the router by the sum of its losses, and these."""
    each = lambda p: (sum((a := model.hidden(p, inputs).losses).values()), a)  # noqa: E731
    grads, values = jax.grad(each, has_aux=True)(params)
    return grads["layers"]["0"]["router"], values


@pytest.mark.parametrize("more", [1, 11])
def test_padding_counts_nothing(more: int) -> None:
    """The router's losses and their gradients are those of the rows without padding, an empty row included."""
    cfg = replace(CFG, layers=1, ffn=replace(CFG.ffn, load_balance_weight=1.0, router_z_weight=1.0))
    model, params, ids = Transformer(cfg, SIMPLE), lively(cfg), tokens(cfg, 2, 11)
    padded = np.pad(ids, ((0, 1), (0, more)), constant_values=3)
    segments = np.pad(np.ones_like(ids), ((0, 1), (0, more)))
    (router, found), (expected_router, expected) = (
        router_losses(model, params, inputs) for inputs in (Inputs(padded, segments=segments), Inputs(ids))
    )
    close(router, expected_router)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_dense_and_experts_in_turn() -> None:
    cfg = replace(CFG, layers=4, pattern=(LayerKind(ffn=FeedForward(mlp=8)), LayerKind()))
    shapes = Transformer(cfg, SIMPLE).shapes()["layers"]
    assert "router" not in shapes["0"] and shapes["1"]["router"].shape == (2, 12, 5)
    assert np.isfinite(run(Transformer(cfg, SIMPLE), lively(cfg), tokens(cfg, 2, 11))).all()


@pytest.mark.parametrize(("matmul", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_sharded_over_experts_is_single(matmul: str, tolerance: float) -> None:
    cfg = replace(CFG, ffn=replace(CFG.ffn, experts=4))
    model = Transformer(cfg, replace(SIMPLE, matmul=matmul))
    params, ids = jax.device_get(lively(cfg)), tokens(cfg, 4, 11)
    loss = lambda p: (model(p, ids) ** 2).mean()  # noqa: E731
    mesh = make_mesh({"expert": 2, "data": 2}, jax.devices()[:4])
    placed = jax.device_put(params, shardings(model.shapes(), model.axes(), mesh))
    assert placed["layers"]["0"]["up"].sharding.shard_shape((2, 4, 12, 10)) == (2, 2, 12, 10)
    with use_mesh(mesh):
        value, gradient = jax.jit(jax.value_and_grad(loss))(placed)
    expected_value, expected = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, expected_value, rtol=tolerance / 10)
    trees_close(jax.device_get(gradient), expected, tolerance)


@pytest.mark.parametrize(
    ("top_k", "expected"), [(0, ": expected at least 1"), (6, " of ffn.experts=5: expected 1 to 5")]
)
def test_as_many_as_there_are(top_k: int, expected: str) -> None:
    with pytest.raises(ValueError, match=f"ffn.top_k={top_k}{expected}"):
        Experts(mlp=4, experts=5, top_k=top_k)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_kernels_are_the_ragged_product(transposed: bool) -> None:
    """Interpreted on the CPU, forward and backward; the rows after the last run mean nothing."""
    from jax.experimental.pallas import tpu

    rng = np.random.default_rng(0)
    rows, weights, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((256, 128), (2, 256, 128) if transposed else (2, 128, 256), (256, 256))
    )
    sizes, last = np.array([100, 130], np.int32), 230
    g[last:] = 0

    def both(compute: Compute) -> tuple[Any, Any, Any]:
        @jax.jit
        def run(rows: Any, weights: Any, sizes: Any) -> Any:
            out, pull = jax.vjp(lambda r, w: ragged.ragged(r, w, sizes, compute, transposed), rows, weights)
            return out, *pull(g)

        out, drows, dweights = jax.device_get(run(rows, weights, sizes))
        return out[:last], drows[:last], dweights

    wanted = both(replace(SIMPLE, backend="gpu"))
    with tpu.force_tpu_interpret_mode():
        found = both(replace(SIMPLE, backend="tpu"))
    for ours, theirs in zip(found, wanted, strict=True):
        close(ours, theirs, 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_are_the_ragged_product(transposed: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of no, one and many blocks, forward and backward; what is after the last run reaches nothing before it."""
    monkeypatch.setattr(ragged, "BLOCK", 6)
    compute, rng, M, E = replace(SIMPLE, matmul=dtype), np.random.default_rng(0), 40, 4
    rows, weights = (
        rng.standard_normal(shape).astype(dtype) for shape in ((M, 7), (E, 5, 7) if transposed else (E, 7, 5))
    )
    g = rng.standard_normal((M, 5)).astype(dtype).astype(np.float32)

    @jax.jit
    def both(rows: Any, g: Any, sizes: Any) -> Any:
        out, pull = jax.vjp(lambda r, w: ragged.ragged(r, w, sizes, compute, transposed), rows, weights)
        return out, *pull(g)

    wide = [w.T if transposed else w for w in weights.astype(np.float64)]

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, M), min_size=E - 1, max_size=E - 1), st.integers(0, M))
    def check(cuts: list[int], last: int) -> None:
        bounds = [0, *sorted(min(c, last) for c in cuts), last]
        rest = np.where(np.arange(M)[:, None] < last, 0, np.nan)
        out, drows, dweights = jax.device_get(both((rows + rest).astype(dtype), g + rest, np.diff(bounds)))
        for e, (a, b) in enumerate(pairwise(bounds)):
            x, dy, dw = rows[a:b].astype(np.float64), g[a:b], dweights[e].astype(np.float64)
            np.testing.assert_allclose(out[a:b], x @ wide[e], atol=1e-5)
            rounded = dict(rtol=1e-2, atol=1e-2) if dtype == "bfloat16" else dict(atol=1e-5)
            np.testing.assert_allclose(drows[a:b].astype(np.float64), dy @ wide[e].T, **rounded)
            np.testing.assert_allclose(dw.T if transposed else dw, x.T @ dy, **rounded)

    check()


def test_the_first_layers_may_be_of_another_kind_than_those_that_repeat() -> None:
    """A dense layer, then experts and windows by turns: the layers one after the other, however they are computed."""
    kinds = (LayerKind(window=3), LayerKind())
    first = replace(CFG, layers=4, first_layers=(LayerKind(ffn=FeedForward(14)),), pattern=kinds)
    assert {name: list(slot.layers) for name, slot in first.slots.items()} == {
        "first0": [0],
        "0": [1, 3],
        "1": [2],
    }
    one_by_one = replace(CFG, layers=4, pattern=(first.first_layers[0], *(kinds[i % 2] for i in range(3))))
    params, ids = jax.device_get(lively(first)), tokens(CFG, 2, 11)
    slots = {i: (name, slot.layers.index(i)) for name, slot in first.slots.items() for i in slot.layers}
    layers = {str(i): jax.tree.map(lambda a, j=j: a[j : j + 1], params["layers"][n]) for i, (n, j) in slots.items()}
    expected = run(Transformer(one_by_one, SIMPLE), {**params, "layers": layers}, ids)
    close(run(Transformer(first, replace(SIMPLE, unroll=4, remat="full")), params, ids), expected)
    stable = Transformer(replace(first, ffn=replace(CFG.ffn, router_z_weight=1.0)), SIMPLE)
    losses = jax.eval_shape(stable.hidden, params, ids).losses
    assert set(losses) == {"balance", "router_z"} and losses["router_z"].shape == ()
    for compute in (SIMPLE, replace(SIMPLE, unroll=0)):
        model = Transformer(first, compute)
        logits, cache = extend(model, params, model.empty_cache(2, 11), Inputs(ids[:, :7]))
        parts = [logits]
        for t in range(7, 11):
            logits, cache = extend(model, params, cache, Inputs(ids[:, t : t + 1]))
            parts.append(logits)
        close(np.concatenate(parts, axis=1), expected, 3e-5)


def test_first_layers_start_as_layers_do() -> None:
    """A layer's first value follows from its number, wherever it is stacked."""
    plain = jax.jit(Transformer(LLAMA, SIMPLE).init)(jax.random.key(0))["layers"]["0"]
    deeper = Transformer(replace(LLAMA, first_layers=(LayerKind(),)), SIMPLE)
    first = jax.jit(deeper.init)(jax.random.key(0))["layers"]
    for name, value in plain.items():
        np.testing.assert_array_equal(value, np.concatenate([first["first0"][name], first["0"][name]]))
    with pytest.raises(ValueError, match="first_layers has 3 and model.pattern 1 kinds of layer for 3 layers"):
        replace(LLAMA, first_layers=(LayerKind(),) * 3)
