"""Experts beside a shared feed-forward, in groups and with a bias of the choice, against a loop over tokens."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from lm.model.shared_experts import SharedExperts
from tests.model.reference import close, silu
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


@pytest.mark.parametrize(
    "how",
    [dict(groups=4), dict(groups=2, top_groups=3), dict(groups=3, group_best=3), dict(groups=6, top_k=2)],
    ids=str,
)
def test_groups_that_do_not_hold_what_is_taken(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ffn.experts=6 in ffn.groups=.*: expected groups of one size"):
        replace(FFN, **how)
