"""Experts beside a shared feed-forward, in groups and with a bias of the choice, against a loop over tokens."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.families import llama
from lm.model.inputs import Inputs
from lm.model.shared_experts import UNSEEN, SharedExperts
from lm.model.transformer import Transformer
from lm.pretrained.rows import flatten
from lm.sharding.mesh import make_mesh
from lm.sharding.shardings import shardings
from lm.sharding.tracing import use_mesh
from lm.train.optim import AdamW
from tests.model.reference import SIMPLE, close, lively, silu, tokens, trees_close
from tests.model.test_experts import arrays, module_of

FFN = SharedExperts(mlp=10, activation="silu", gated=True, experts=6, top_k=2, shared=14)
RNG = np.random.default_rng(1)
X = RNG.standard_normal((2, 7, 12)).astype(np.float32)


def parameters(ffn: SharedExperts) -> dict[str, np.ndarray]:
    shapes = dict(shared_gate=(12, 14), shared_up=(12, 14), shared_down=(14, 12))
    shapes |= dict(choice_bias=(6,)) if ffn.choice_bias else {}
    shapes |= dict(shared_router=(12, 1)) if ffn.shared_gate else {}
    return arrays(ffn, 12) | {n: RNG.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}


def token(ffn: SharedExperts, x: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """What becomes of one token x [D]."""
    logits = x @ p["router"]
    scores = 1 / (1 + np.exp(-logits)) if ffn.scores == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    by = scores + p.get("choice_bias", 0.0)
    groups = np.split(np.arange(6), ffn.groups)
    worth = [np.sort(by[group])[::-1][: ffn.group_best].sum() for group in groups]
    allowed = np.concatenate([groups[g] for g in np.argsort(worth)[::-1][: ffn.top_groups]])
    best = allowed[np.argsort(by[allowed])[::-1][: ffn.top_k]]
    weights = scores[best] / (scores[best].sum() if ffn.renormalize else 1) * ffn.scale
    out = sum(
        w * (silu(x @ p["gate"][e]) * (x @ p["up"][e])) @ p["down"][e] for e, w in zip(best, weights, strict=True)
    )
    shared = (silu(x @ p["shared_gate"]) * (x @ p["shared_up"])) @ p["shared_down"]
    return np.asarray(out + shared / (1 + np.exp(-x @ p["shared_router"])) if ffn.shared_gate else out + shared)


@pytest.mark.parametrize(
    "how",
    [
        dict(renormalize=False),
        dict(shared_gate=True),
        dict(groups=3, top_groups=1, scale=2.5),
        dict(scores="sigmoid", choice_bias=True, groups=3, top_groups=2, group_best=2),
    ],
    ids=str,
)
def test_each_token_is_its_chosen_experts_sum_and_the_shared_one(how: dict[str, Any]) -> None:
    ffn = replace(FFN, **how)
    p = parameters(ffn)
    found, _ = module_of(ffn, X, p)
    close(found, np.stack([[token(ffn, x, p) for x in row] for row in X]), 1e-4)


def test_the_bias_chooses_and_weighs_nothing() -> None:
    """However large, the weights are the scores."""
    ffn = replace(FFN, scores="sigmoid", choice_bias=True, renormalize=False, shared=0)
    p = {name: values for name, values in parameters(ffn).items() if not name.startswith("shared")}
    bias = np.array([9.0, 9.0, 0, 0, 0, 0], np.float32)
    found, _ = module_of(ffn, X, p | {"choice_bias": bias})
    more, _ = module_of(ffn, X, p | {"choice_bias": 10 * bias})
    np.testing.assert_array_equal(found, more)
    gradient = jax.grad(lambda b: module_of(ffn, X, p | {"choice_bias": b})[0].sum())(bias)
    assert not gradient.any()


def test_the_bias_is_moved_against_the_load_and_evens_it() -> None:
    """By 0.001 a step, whatever the optimizer's rate; padding is no load, and nothing else sees it."""
    ffn = replace(FFN, scores="sigmoid", choice_bias=True, shared=0)
    cfg = llama(vocab=29, layers=1, width=12, heads=2, mlp=10, context=64, ffn=ffn)
    model = Transformer(cfg, SIMPLE)
    ids = tokens(cfg, 4, 64)
    seen = Inputs(ids, segments=(np.arange(64) < 48).astype(np.int32) * np.ones_like(ids))

    def loss(params: Any, inputs: Any) -> Any:
        return sum(model.hidden(params, inputs).losses.values())

    params = jax.jit(model.init)(jax.random.key(0))
    optimizer = AdamW(learning_rate=0.5, weight_decay=0.0).build(10, model.axes())

    @jax.jit
    def step(params: Any, inputs: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, inputs)
        updates = optimizer.update(grads, optimizer.init(params), params)[0]
        return value, grads, updates, jax.tree.map(jnp.add, params, updates)

    value, grads, updates, _ = jax.device_get(step(params, seen))
    before, rest = flatten(grads)["layers/0/choice_bias"] / UNSEEN, flatten(updates)
    assert float(value) == 0.0
    np.testing.assert_allclose(before.sum(), 0, atol=1e-5)
    np.testing.assert_allclose(rest.pop("layers/0/choice_bias"), -1e-3 * np.sign(before), rtol=1e-5)
    assert not any(np.asarray(u).any() for u in rest.values())
    same = step(params, replace(seen, tokens=np.where(np.arange(64) < 48, ids, 0)))[1]
    np.testing.assert_array_equal(same["layers"]["0"]["choice_bias"], grads["layers"]["0"]["choice_bias"])
    for _ in range(300):
        params = step(params, seen)[3]
    after = flatten(jax.device_get(step(params, seen)[1]))["layers/0/choice_bias"] / UNSEEN
    assert np.abs(after).max() < 0.2 * np.abs(before).max()


def test_on_a_mesh_it_is_the_same() -> None:
    """The load too, of the tokens of all devices."""
    ffn = replace(FFN, scores="sigmoid", choice_bias=True, groups=3, top_groups=2, group_best=2, shared_gate=True)
    cfg = llama(vocab=32, layers=2, width=12, heads=2, mlp=10, context=24, ffn=ffn)
    model, params, ids = Transformer(cfg, SIMPLE), jax.device_get(lively(cfg)), tokens(cfg, 4, 11)

    def loss(params: Any) -> jax.Array:
        hidden = model.hidden(params, ids)
        return (hidden.x**2).mean() + hidden.losses["choice_bias"] / UNSEEN

    mesh = make_mesh({"expert": 2, "tensor": 2}, jax.devices()[:4])
    placed = jax.device_put(params, shardings(model.shapes(), model.axes(), mesh))
    with use_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(placed)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    trees_close(jax.device_get(found[1]), gradient, 1e-4)


@pytest.mark.parametrize(
    "how",
    [dict(groups=4), dict(groups=2, top_groups=3), dict(groups=3, group_best=3), dict(groups=6, top_k=2)],
    ids=str,
)
def test_groups_that_do_not_hold_what_is_taken(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ffn.experts=6 in ffn.groups=.*: expected groups of one size"):
        replace(FFN, **how)
