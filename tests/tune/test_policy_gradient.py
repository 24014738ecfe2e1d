"""Advantages and losses equal TRL's, as recorded by certificates/grpo.py, and what may not change them does not."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.tune.grpo import GRPO
from lm.tune.policy_gradient import advantages, equal_groups, k3, loss_weights, policy_ratio
from lm.tune.reward_functions import ExactAnswer

RECORD = json.loads((Path(__file__).parent / "trl.json").read_text())
ARRAYS = {name: np.array(values, np.float32) for name, values in RECORD["arrays"].items()}
MOST = RECORD["max_completion_length"]


def loss(logprobs: Any, arrays: Any, ours: dict[str, Any], weights: Any = 1.0) -> jax.Array:
    """The loss of a batch of these arrays."""
    method, mask = GRPO(rewards=(ExactAnswer(),), **ours), arrays["mask"] > 0
    ratio = policy_ratio(logprobs, arrays["old"], mask, method.ratio)
    each, _ = method.surrogate_loss(logprobs, ratio, arrays["advantages"][:, None])
    each = each * weights + method.beta * k3(logprobs, arrays["reference"], mask)
    of = loss_weights(np.asarray(mask), method.aggregation, MOST)
    return jnp.where(mask, of * each, 0).sum()


@pytest.mark.parametrize("name", RECORD["losses"])
def test_losses_and_gradients_are_trl_s(name: str) -> None:
    recorded = RECORD["losses"][name]
    weights = ARRAYS["weights"] if name == "weighted" else 1.0
    found, gradient = jax.value_and_grad(loss)(jnp.asarray(ARRAYS["logprobs"]), ARRAYS, recorded["ours"], weights)
    assert float(found) == pytest.approx(recorded["loss"], abs=1e-5)
    np.testing.assert_allclose(gradient, recorded["gradient"], atol=1e-5)


@pytest.mark.parametrize("name", RECORD["advantages"])
def test_advantages_are_trl_s(name: str) -> None:
    recorded = RECORD["advantages"][name]
    rewards = np.array([np.nan if value is None else value for value in RECORD["rewards"]])
    found = advantages(rewards, 4, **recorded["ours"])
    np.testing.assert_allclose(found, recorded["values"], atol=1e-5)
    assert not found[4:8].any() and not found[12:].any()  # all equal; all without a reward


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
@pytest.mark.parametrize("ratio", ["token", "sequence", "product"])
def test_masked_tokens_count_nowhere(aggregation: str, ratio: str) -> None:
    """Neither what is behind a completion, nor how much of it there is."""
    ours = dict(aggregation=aggregation, ratio=ratio, beta=0.1)
    changed = {name: np.where(ARRAYS["mask"] > 0, a, -7.0) if a.ndim == 2 else a for name, a in ARRAYS.items()}
    changed["mask"] = ARRAYS["mask"]
    wide = {n: np.pad(a, [(0, 0), (0, 5)]) if a.ndim == 2 else a for n, a in changed.items()}
    values = [jax.value_and_grad(loss)(jnp.asarray(a["logprobs"]), a, ours) for a in (ARRAYS, changed, wide)]
    for value, gradient in values[1:]:
        assert float(value) == pytest.approx(float(values[0][0]), abs=1e-6)
        np.testing.assert_allclose(gradient[:, :6], values[0][1], atol=1e-6)
        assert not np.asarray(gradient)[:, 6:].any()


def test_each_aggregation_weighs_what_its_paper_says() -> None:
    mask = ARRAYS["mask"] > 0  # 6, 3, 1 and 4 tokens
    by_sequence, by_token, constant = (loss_weights(mask, kind, MOST) for kind in ("sequence", "token", "constant"))
    np.testing.assert_allclose(by_sequence.sum(1), 1 / 4)
    np.testing.assert_allclose(by_token[mask], 1 / 14)
    np.testing.assert_allclose(constant[mask], 1 / 32)
    nothing = loss_weights(np.zeros((2, 3), bool), "token", MOST)
    assert np.isfinite(nothing).all() and not nothing.any()


def test_kl_is_positive_and_pulls_to_the_reference() -> None:
    reference, mask = jnp.asarray([[-1.0, -1.0]]), jnp.asarray([[True, True]])
    policy = jnp.asarray([[-0.5, -2.0]])
    gradient = jax.grad(lambda x: k3(x, reference, mask).sum())(policy)
    assert (k3(policy, reference, mask) > 0).all() and float(k3(reference, reference, mask).sum()) == 0
    assert float(gradient[0, 0]) > 0 > float(gradient[0, 1])


def test_equal_groups_have_no_two_that_differ() -> None:
    rewards = np.array([1, 1, 0, 1, np.nan, 1, np.nan, np.nan, 0, np.nan, 1, 1.0])
    np.testing.assert_array_equal(equal_groups(rewards, 2), [True, False, True, True, True, True])
    np.testing.assert_array_equal(equal_groups(rewards, 4), [False, True, False])
