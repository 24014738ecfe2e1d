"""Experts beside a feed-forward that each read the residual stream under norms of their own (Gemma 4), against a loop
over tokens."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gemma import gemma4_26b_a4b
from lm.model import count
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.hybrids import gemma4, gemma4_moe
from lm.model.inputs import Inputs
from lm.model.normed_experts import NormedExperts
from lm.model.parts import Norm, RMSNorm
from lm.model.taps import Watch
from lm.model.transformer import Transformer
from lm.model.wiring import ScaledSandwich
from lm.sharding.mesh import make_mesh
from lm.sharding.shardings import shardings
from lm.sharding.tracing import use_mesh
from lm.value import build, plain
from tests.model.reference import SIMPLE, close, extend, lively, run, silu, tokens
from tests.model.test_experts import module_of
from tests.model.test_shared_experts import X, parameters

FFN = NormedExperts(
    10, "silu", gated=True, experts=6, top_k=2, shared=14, norm=RMSNorm(0.01), router_scale=0.7, router_z_weight=0.1
)
NORMS = ("router_norm", "experts_norm", "experts_post_norm", "shared_norm", "shared_post_norm")
SIZES: dict[str, Any] = dict(
    vocab=41,
    layers=4,
    width=16,
    heads=4,
    kv_heads=2,
    mlp=20,
    context=32,
    head_dim=4,
    full_head_dim=6,
    window=3,
    every=2,
)
SHARED: dict[str, Any] = dict(SIZES, shared=2, shared_mlp=28, per_layer=5)
MOE = gemma4_moe(**SHARED, experts=4, top_k=2, expert_mlp=12)
# a layer with keys, and two alike that read them
FEWER: dict[str, Any] = SHARED | dict(layers=3, every=1, per_layer=6)
FEW = gemma4_moe(**FEWER, experts=4, top_k=2, expert_mlp=12)


def numbers(ffn: NormedExperts) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    names = [name for name in NORMS if ffn.shared or not name.startswith("shared")]
    found = parameters(ffn) if ffn.shared else {n: a for n, a in parameters(ffn).items() if "shared" not in n}
    scales = {f"{name}_scale": rng.uniform(0.5, 1.5, 12).astype(np.float32) for name in names}
    return found | scales | {"expert_scale": rng.uniform(0.5, 1.5, 6).astype(np.float32)}


def token(ffn: NormedExperts, x: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """What becomes of one token x [D]."""

    def normed(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.sqrt(np.square(x).mean() + 0.01) * p[f"{name}_scale"])

    logits = (normed("router_norm", x) * ffn.router_scale) @ p["router"]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(probabilities)[::-1][: ffn.top_k]
    weights = probabilities[best] / probabilities[best].sum() * p["expert_scale"][best]
    h = normed("experts_norm", x)
    routed = sum(
        w * (silu(h @ p["gate"][e]) * (h @ p["up"][e])) @ p["down"][e] for e, w in zip(best, weights, strict=True)
    )
    y = normed("experts_post_norm", np.asarray(routed))
    if not ffn.shared:
        return y
    h = normed("shared_norm", x)
    dense = (silu(h @ p["shared_gate"]) * (h @ p["shared_up"])) @ p["shared_down"]
    return y + normed("shared_post_norm", dense)


@pytest.mark.parametrize("shared", [14, 0])
def test_each_branch_has_its_norms(shared: int) -> None:
    ffn = replace(FFN, shared=shared)
    p = numbers(ffn)
    found, losses = module_of(ffn, X, p)
    close(found, np.stack([[token(ffn, x, p) for x in row] for row in X]), 1e-4)
    assert float(losses["losses"]["router_z"]) > 0


def test_the_feed_forward_may_read_the_stream_as_it_is() -> None:
    """Where the experts' branch is silenced and the other's last norm is of size 1, twice is once: it is the model
    without experts, whose norm before the feed-forward is the branch's own."""
    dense = gemma4(**FEWER, eps=1e-9)
    cfg = gemma4_moe(**FEWER, eps=1e-9, experts=4, top_k=2, expert_mlp=12)
    params, ids = lively(cfg), tokens(cfg, 2, 9)

    def silent(layer: dict[str, Any]) -> dict[str, Any]:
        still = {"experts_post_norm_scale": 0.0, "shared_post_norm_scale": 1.0}
        return layer | {name: jnp.full_like(layer[name], value) for name, value in still.items()}

    def without(layer: dict[str, Any]) -> dict[str, Any]:
        names = {f"shared_{name}": name for name in ("gate", "up", "down")} | {"shared_norm_scale": "ffn_norm_scale"}
        kept = {n: a for n, a in layer.items() if n not in ("gate", "up", "down") and "ffn_norm_scale" != n}
        own = {ours: layer[theirs] for theirs, ours in names.items()}
        return {n: a for n, a in kept.items() if not n.startswith(("shared", "router", "expert"))} | own

    layers = {name: silent(layer) for name, layer in params["layers"].items()}
    assert not any("ffn_norm_scale" in layer for layer in layers.values())
    found = run(Transformer(cfg, SIMPLE), {**params, "layers": layers}, ids)
    same = {**params, "layers": {name: without(layer) for name, layer in layers.items()}}
    assert jax.tree.structure(same) == jax.tree.structure(lively(dense))
    np.testing.assert_allclose(found, run(Transformer(dense, SIMPLE), same, ids), atol=1e-5)


def test_the_wiring_of_before_is_written_as_it_was() -> None:
    assert "ffn_norm" not in str(plain(ScaledSandwich())) and "ffn_norm" not in str(plain(gemma4(**SHARED)))
    assert MOE.wiring.token_size == 5 and build(ModelConfig, plain(MOE)) == MOE


def test_cached_is_full() -> None:
    """In pieces longer than the window and of one token."""
    model, params, ids = Transformer(MOE, replace(SIMPLE, unroll=0)), lively(MOE), tokens(MOE, 2, 12)
    full, cache, got = run(model, params, ids), model.empty_cache(2, 12), []
    for start, end in ((0, 5), (5, 6), (6, 11), (11, 12)):
        logits, cache = extend(model, params, cache, Inputs(ids[:, start:end]))
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, 1), full, atol=1e-4)


def test_a_loop_over_layers_is_their_scan() -> None:
    """Logits and gradients, with all that a layer computes kept or computed again; every parameter has one."""
    ids, params = tokens(FEW, 2, 9), lively(FEW)

    @partial(jax.jit, static_argnums=0)
    def gradient(compute: Compute, params: Any) -> Any:
        return jax.value_and_grad(lambda p: jnp.square(Transformer(FEW, compute)(p, ids)).mean())(params)

    wanted = gradient(replace(SIMPLE, unroll=0), params)
    assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(wanted))
    found = gradient(replace(SIMPLE, remat="full"), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, wanted)


def test_on_a_mesh_it_is_the_same() -> None:
    """Loss, losses of the router and gradients, of experts and of what all take split."""
    cfg = replace(FEW, vocab=40, ffn=replace(FEW.ffn, load_balance_weight=0.5, router_z_weight=0.1))
    model, params, ids = Transformer(cfg, SIMPLE), jax.device_get(lively(cfg)), tokens(cfg, 4, 11)

    def loss(params: Any) -> jax.Array:
        hidden = model.hidden(params, ids)
        return jnp.asarray((hidden.x**2).mean() + sum(hidden.losses.values()))

    mesh = make_mesh({"expert": 2, "tensor": 2}, jax.devices()[:4])
    placed = jax.device_put(params, shardings(model.shapes(), model.axes(), mesh))
    with use_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(placed)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found[1], gradient)


def test_the_router_s_logits_are_read() -> None:
    model, params, ids = Transformer(FEW, SIMPLE), lively(FEW), tokens(FEW, 2, 9)
    reads = {name: (lambda x: x) for name in ("router_logits", "mlp_out", "resid_mid", "resid_post")}
    hidden = jax.jit(Transformer(FEW, SIMPLE, Watch(reads=reads)).hidden)(params, ids)
    np.testing.assert_array_equal(hidden.x, jax.jit(model.hidden)(params, ids).x)
    seen = hidden.taps
    assert seen["router_logits"].shape == (3, 2, 9, 4) and seen["mlp_out"].shape == (3, 2, 9, 16)


def test_what_is_counted_is_what_a_token_takes() -> None:
    dense = gemma4(**SHARED)
    experts, router = 4 * 3 * 16 * 12, 16 * 4
    vectors = 4 + 4 * 16  # the experts' own numbers; five norms in place of one
    assert count.parameters(MOE) - count.parameters(dense) == 4 * (experts + router + vectors)
    more = count.flops_per_token(MOE, 8) - count.flops_per_token(dense, 8)
    assert more == 6 * 4 * (experts // 2 + router)
    assert MOE.ffn.active_mlp == 2 * 12 + 20 and MOE.slots["0"].ffn.active_mlp == 2 * 12 + 28
    assert isinstance(dense.wiring, ScaledSandwich) and dense.wiring.ffn_norm is None and MOE.wiring != dense.wiring


def test_the_published_size_is_of_25b_parameters_of_which_a_token_takes_4b() -> None:
    """The text alone of google/gemma-4-26B-A4B: 25.2 and 3.8, as it is said of it."""
    cfg = gemma4_26b_a4b
    active = count.parameters(cfg) - 30 * (128 - 8) * 3 * 2816 * 704
    assert (count.parameters(cfg), active) == (25_233_141_790, 3_822_530_590)
    assert cfg.wiring == ScaledSandwich(Norm()) and cfg.ffn.active_mlp == 8 * 704 + 2112
