"""Views: lenses and direct effects against what they are by definition."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.inspect.edits import Add
from lm.inspect.look import look
from lm.inspect.views import (
    direct_effect,
    effective_rank,
    entropy,
    head_outputs,
    jacobian_lens,
    jacobian_read,
    logit_lens,
)
from lm.model.compute import Compute
from lm.model.families import bert, llama
from lm.model.transformer import Params, Transformer
from lm.model.wiring import ScaledPreNorm
from tests.model.reference import lively, run

EXACT = Compute(dtype="float32", matmul="float32").resolve()
TOKENS: Any = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], np.int32)
MODEL = Transformer(llama(vocab=16, layers=2, width=8, heads=2, mlp=12, context=8), EXACT)
PLACES = ("embedding", "attn_head", "attn_out", "mlp_out", "resid_post")


@pytest.fixture(scope="module")
def params() -> Params:
    return lively(MODEL.cfg)


@pytest.fixture(scope="module")
def taps(params: Params) -> dict[str, np.ndarray]:
    return jax.device_get(dict(jax.jit(lambda p: look(MODEL, p, TOKENS, PLACES).taps)(params)))


def test_the_lens_at_the_last_layer_is_the_output(params: Params, taps: dict[str, np.ndarray]) -> None:
    lens = np.asarray(jax.jit(partial(logit_lens, MODEL))(params, taps["resid_post"]))
    np.testing.assert_allclose(lens[-1], run(MODEL, params, TOKENS), rtol=1e-5, atol=1e-6)
    assert np.abs(lens[0] - lens[-1]).max() > 0.1


def test_the_stream_is_the_sum_of_what_is_added(params: Params, taps: dict[str, np.ndarray]) -> None:
    """Of the embedding, the heads and the feed-forwards; what the logits owe to all of it is the logits less those of
    nothing."""
    x = taps["resid_post"][-1]

    @jax.jit
    def added(params: Params, heads: Any, x: Any, parts: Any) -> Any:
        logits = MODEL.logits(params, x) - MODEL.logits(params, 0 * x)
        return head_outputs(MODEL, params, heads), direct_effect(MODEL, params, x, parts), logits

    heads, effect, logits = jax.device_get(added(params, taps["attn_head"], x, np.stack([x, 0 * x])))
    np.testing.assert_allclose(heads.sum(1), taps["attn_out"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(taps["embedding"][0] + heads.sum((0, 1)) + taps["mlp_out"].sum(0), x, atol=1e-4)
    np.testing.assert_allclose(effect[0], logits, atol=1e-5)
    assert not effect[1].any()


def test_heads_add_their_part_of_a_scaled_branch(params: Params) -> None:
    model = Transformer(replace(MODEL.cfg, wiring=ScaledPreNorm(0.25)), EXACT)

    @jax.jit
    def both(params: Params) -> Any:
        taps = look(model, params, TOKENS, PLACES).taps
        return head_outputs(model, params, taps["attn_head"]).sum(1), taps["attn_out"]

    np.testing.assert_allclose(*both(params), rtol=1e-4, atol=1e-5)


def test_the_jacobian_lens_is_the_end_to_first_order(params: Params, taps: dict[str, np.ndarray]) -> None:
    """At the last layer it is one; at the first it says what a small change there becomes."""
    first = TOKENS[:1]

    @jax.jit
    def lens(params: Params, resid: Any) -> Any:
        jacobians = jacobian_lens(MODEL, params, first, position=2)
        read = jacobian_read(MODEL, params, jacobians, resid)
        return jacobians, read, MODEL.logits(params, resid[0] @ jacobians[0].T)

    jacobians, read, behind_first = jax.device_get(lens(params, taps["resid_post"]))
    np.testing.assert_allclose(jacobians[1], np.eye(8), atol=1e-6)
    np.testing.assert_allclose(read[-1], run(MODEL, params, TOKENS), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read[0], behind_first, rtol=1e-4, atol=1e-5)
    step = np.linspace(-1, 1, 8, dtype=np.float32)

    @jax.jit
    def near(values: jax.Array) -> Any:
        return look(MODEL, params, first, ["resid_post"], [Add("resid_post", 0, positions=2, values=values)]).taps

    moved = [np.asarray(near(sign * np.float32(1e-2) * step)["resid_post"]) for sign in (1, -1)]
    change = (moved[0][1, 0, 2] - moved[1][1, 0, 2]) / 2e-2
    np.testing.assert_allclose(jacobians[0] @ step, change, rtol=2e-2, atol=2e-2)


def test_numbers_of_what_is_known() -> None:
    @jax.jit
    def found(even: Any, sure: Any, spread: Any, alike: Any) -> Any:
        return entropy(even), entropy(sure), effective_rank(spread), effective_rank(alike)

    given = np.full((3, 4), 1 / 4), np.eye(4), np.eye(5), np.ones((5, 3))
    even, sure, spread, alike = jax.device_get(found(*(a.astype(np.float32) for a in given)))
    np.testing.assert_allclose(even, np.log(4), rtol=1e-6)
    assert not sure.any() and spread == pytest.approx(5) and alike == pytest.approx(1)


def test_a_head_of_a_normed_sum_adds_nothing_of_its_own() -> None:
    model = Transformer(bert(vocab=16, layers=1, width=8, heads=2, mlp=12, context=8), EXACT)
    with pytest.raises(ValueError, match="PostNorm normalises the sum of the heads"):
        head_outputs(model, {}, jnp.zeros((1, 1, 2, 2, 4)))
