"""Views: lenses and direct effects against what they are by definition."""

from dataclasses import replace
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
from tests.model.reference import run

EXACT = Compute(dtype="float32", matmul="float32").resolve()
TOKENS = jnp.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
MODEL = Transformer(llama(vocab=16, layers=2, width=8, heads=2, mlp=12, context=8), EXACT)
PLACES = ("embedding", "attn_head", "attn_out", "mlp_out", "resid_post")


@pytest.fixture(scope="module")
def params() -> Params:
    return jax.tree.map(lambda a: a * 3, jax.jit(MODEL.init)(jax.random.key(1)))


@pytest.fixture(scope="module")
def taps(params: Params) -> dict[str, jax.Array]:
    return dict(jax.jit(lambda p: look(MODEL, p, TOKENS, PLACES).taps)(params))


def test_the_lens_at_the_last_layer_is_the_output(params: Params, taps: dict[str, jax.Array]) -> None:
    lens = logit_lens(MODEL, params, taps["resid_post"])
    np.testing.assert_allclose(lens[-1], run(MODEL, params, TOKENS), rtol=1e-5, atol=1e-6)
    assert np.abs(lens[0] - lens[-1]).max() > 0.1


def test_the_stream_is_the_sum_of_what_is_added(params: Params, taps: dict[str, jax.Array]) -> None:
    """Of the embedding, the heads and the feed-forwards; what the logits owe to all of it is the logits less those of
    nothing."""
    heads = head_outputs(MODEL, params, taps["attn_head"])
    np.testing.assert_allclose(heads.sum(1), taps["attn_out"], rtol=1e-4, atol=1e-5)
    x = taps["resid_post"][-1]
    np.testing.assert_allclose(taps["embedding"][0] + heads.sum((0, 1)) + taps["mlp_out"].sum(0), x, atol=1e-4)
    effect = direct_effect(MODEL, params, x, jnp.stack([x, 0 * x]))
    np.testing.assert_allclose(effect[0], MODEL.logits(params, x) - MODEL.logits(params, 0 * x), atol=1e-5)
    assert not effect[1].any()


def test_heads_add_their_part_of_a_scaled_branch(params: Params) -> None:
    model = Transformer(replace(MODEL.cfg, wiring=ScaledPreNorm(0.25)), EXACT)
    taps = jax.jit(lambda p: look(model, p, TOKENS, PLACES).taps)(params)
    heads = head_outputs(model, params, taps["attn_head"])
    np.testing.assert_allclose(heads.sum(1), taps["attn_out"], rtol=1e-4, atol=1e-5)


def test_the_jacobian_lens_is_the_end_to_first_order(params: Params, taps: dict[str, jax.Array]) -> None:
    """At the last layer it is one; at the first it says what a small change there becomes."""
    jacobians = jacobian_lens(MODEL, params, TOKENS[:1], position=2)
    np.testing.assert_allclose(jacobians[1], np.eye(8), atol=1e-6)
    read = jacobian_read(MODEL, params, jacobians, taps["resid_post"])
    np.testing.assert_allclose(read[-1], run(MODEL, params, TOKENS), rtol=1e-4, atol=1e-5)
    step = jnp.linspace(-1, 1, 8)

    @jax.jit
    def near(values: jax.Array) -> Any:
        return look(MODEL, params, TOKENS[:1], ["resid_post"], [Add("resid_post", 0, positions=2, values=values)])

    moved = [near(sign * 1e-2 * step) for sign in (1, -1)]
    change = (moved[0].taps["resid_post"][1, 0, 2] - moved[1].taps["resid_post"][1, 0, 2]) / 2e-2
    np.testing.assert_allclose(jacobians[0] @ step, change, rtol=2e-2, atol=2e-2)


def test_numbers_of_what_is_known() -> None:
    even = jnp.full((3, 4), 1 / 4)
    np.testing.assert_allclose(entropy(even), np.log(4), rtol=1e-6)
    assert not entropy(jnp.eye(4)).any()
    assert effective_rank(jnp.eye(5)) == pytest.approx(5) and effective_rank(jnp.ones((5, 3))) == pytest.approx(1)


def test_a_head_of_a_normed_sum_adds_nothing_of_its_own() -> None:
    model = Transformer(bert(vocab=16, layers=1, width=8, heads=2, mlp=12, context=8), EXACT)
    with pytest.raises(ValueError, match="PostNorm normalises the sum of the heads"):
        head_outputs(model, {}, jnp.zeros((1, 1, 2, 2, 4)))
