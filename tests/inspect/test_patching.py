"""Patching finds the circuit that was put there, by head and by position; attribution agrees to first order."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.inspect import patching
from lm.inspect.edits import Replace, Zero
from lm.inspect.look import look
from lm.inspect.patching import logit_difference
from lm.inspect.views import duplicate_token, induction, previous_token, sink_mass
from tests.inspect.circuit import CLEAN, CORRUPTED, circuit

MODEL, PARAMS = circuit()
# one program a call, where each operation would be one
fixed = dict(static_argnames=("model", "place", "metric", "by"))
patch, attribution = jax.jit(patching.patch, **fixed), jax.jit(patching.attribution, **fixed)  # type: ignore[call-overload]
said = jax.jit(MODEL)
PATTERN = ["attn_pattern"]
METRIC = logit_difference(jnp.array([1]), jnp.array([3]))  # b, which is right, less d


def test_the_circuit_completes_what_it_has_seen() -> None:
    assert METRIC(said(PARAMS, CLEAN)) == pytest.approx(1) and METRIC(said(PARAMS, CORRUPTED)) == pytest.approx(0)


@pytest.mark.parametrize(("place", "heads"), [("attn_head", [[1, 0], [1, 0]]), ("attn_pattern", [[0, 0], [1, 0]])])
def test_denoising_finds_the_heads(place: str, heads: list[list[float]]) -> None:
    """Head 0 of both layers carries the answer; what head 0 of layer 0 looks at does not depend on the tokens."""
    found = patch(MODEL, PARAMS, CORRUPTED, CLEAN, place, METRIC, by="N")
    np.testing.assert_allclose(found, heads, atol=1e-5)


def test_noising_finds_the_positions() -> None:
    """Behind layer 0 the answer is where the token behind the first a stands, behind layer 1 at the end."""
    broken = METRIC(said(PARAMS, CLEAN)) - patch(MODEL, PARAMS, CLEAN, CORRUPTED, "attn_head", METRIC, by="T")
    wanted = np.zeros((2, 6))
    wanted[0, 2] = wanted[1, 5] = 1
    np.testing.assert_allclose(broken, wanted, atol=1e-5)
    both = patch(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", METRIC, by="NT")
    assert both.shape == (2, 2, 6) and both[0, 0, 2] == pytest.approx(1) and both[0, 1].max() < 1e-5


def test_attribution_is_patching_to_first_order() -> None:
    """Of the last layer's heads, which the output reads linearly, exactly; in the same order of axes."""
    exact = patch(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", METRIC, by="TN") - METRIC(said(PARAMS, CORRUPTED))
    first = attribution(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", METRIC, by="TN")
    assert first.shape == exact.shape == (2, 6, 2)
    np.testing.assert_allclose(first[1], exact[1], atol=1e-5)
    small = jax.tree.map(
        lambda clean, corrupted: corrupted + 1e-3 * (clean - corrupted), *map(values, (CLEAN, CORRUPTED))
    )
    moved = METRIC(
        jax.jit(lambda v: look(MODEL, PARAMS, CORRUPTED, edits=[Replace("resid_mid", layers=0, values=v)]).logits)(
            small
        )
    )
    gradient = attribution(MODEL, PARAMS, CORRUPTED, CLEAN, "resid_mid", METRIC)[0]
    assert float(moved - METRIC(said(PARAMS, CORRUPTED))) / 1e-3 == pytest.approx(float(gradient), rel=0.2, abs=1e-3)


def test_attribution_is_of_the_difference_in_any_order_of_axes() -> None:
    """Of b less a token that is nowhere, to which the corrupted text's own values give something too."""
    metric = logit_difference(jnp.array([1]), jnp.array([5]))
    here = metric(said(PARAMS, CORRUPTED))
    exact = patch(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", metric, by="NT") - here
    first = attribution(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", metric, by="NT")
    assert here > 0.1 and first.shape == exact.shape == (2, 2, 6)
    np.testing.assert_allclose(first[1], exact[1], atol=1e-5)


def test_edited_logits_show_nothing_that_is_hidden() -> None:
    pattern = jax.jit(partial(look, MODEL, taps=PATTERN, edits=[Zero("attn_logits")]))(PARAMS, CLEAN).taps[
        "attn_pattern"
    ]
    wanted = np.tri(6) / np.arange(1, 7)[:, None]
    np.testing.assert_allclose(pattern, np.broadcast_to(wanted, pattern.shape), rtol=1e-6)


def values(tokens: np.ndarray) -> jax.Array:
    return jax.jit(partial(look, MODEL, taps=["resid_mid"]))(PARAMS, tokens).taps["resid_mid"]


def test_the_kinds_of_the_heads() -> None:
    @jax.jit
    def kinds(params: Any, tokens: jax.Array) -> Any:
        pattern = look(MODEL, params, tokens, PATTERN).taps["attn_pattern"]  # [L, B, N, T, S]
        uniform = pattern[1, 0, 1]  # a head that is nothing looks everywhere alike
        alike = sink_mass(uniform), duplicate_token(uniform, tokens[0])
        return previous_token(pattern), induction(pattern, tokens), *alike

    before, behind, first, same = jax.device_get(kinds(PARAMS, CLEAN))
    assert before[0, 0, 0] == pytest.approx(1) and before[1, 0, 0] < 0.5 and behind[1, 0, 0] == pytest.approx(1)
    np.testing.assert_allclose(first, np.mean(1 / np.arange(2, 7)), rtol=1e-5)
    assert same == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (partial(patch, other=CLEAN[:, :5], place="attn_head"), "texts of one shape: (1, 6) and (1, 5) tokens"),
        (partial(patch, other=CLEAN, place="resid_mid", by="N"), "resid_mid has axes BTD"),
        (partial(patch, other=CLEAN, place="mlp_iner"), "unknown tap 'mlp_iner': did you mean mlp_inner"),
        (partial(patch, other=CLEAN, place="router_logits"), "this model has no tap 'router_logits'"),
    ],
)
def test_what_is_asked_wrongly_is_said(change: partial, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        change(MODEL, PARAMS, CORRUPTED, metric=METRIC)
