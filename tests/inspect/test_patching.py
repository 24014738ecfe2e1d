"""Patching finds the circuit that was put there, by head and by position; attribution agrees to first order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.inspect.edits import Replace, Zero
from lm.inspect.look import look
from lm.inspect.patching import attribution, logit_difference, patch
from lm.inspect.views import duplicate_token, induction, previous_token, sink_mass
from tests.inspect.circuit import CLEAN, CORRUPTED, circuit

MODEL, PARAMS = circuit()
METRIC = logit_difference(jnp.array([1]), jnp.array([3]))  # b, which is right, less d


def test_the_circuit_completes_what_it_has_seen() -> None:
    assert METRIC(MODEL(PARAMS, CLEAN)) == pytest.approx(1) and METRIC(MODEL(PARAMS, CORRUPTED)) == pytest.approx(0)


@pytest.mark.parametrize(("place", "heads"), [("attn_head", [[1, 0], [1, 0]]), ("attn_pattern", [[0, 0], [1, 0]])])
def test_denoising_finds_the_heads(place: str, heads: list[list[float]]) -> None:
    """Head 0 of both layers carries the answer; what head 0 of layer 0 looks at does not depend on the tokens."""
    found = patch(MODEL, PARAMS, CORRUPTED, CLEAN, place, METRIC, by="N")
    np.testing.assert_allclose(found, heads, atol=1e-5)


def test_noising_finds_the_positions() -> None:
    """Behind layer 0 the answer is where the token behind the first a stands, behind layer 1 at the end."""
    broken = METRIC(MODEL(PARAMS, CLEAN)) - patch(MODEL, PARAMS, CLEAN, CORRUPTED, "attn_head", METRIC, by="T")
    wanted = np.zeros((2, 6))
    wanted[0, 2] = wanted[1, 5] = 1
    np.testing.assert_allclose(broken, wanted, atol=1e-5)
    both = patch(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", METRIC, by="NT")
    assert both.shape == (2, 2, 6) and both[0, 0, 2] == pytest.approx(1) and both[0, 1].max() < 1e-5


def test_attribution_is_patching_to_first_order() -> None:
    """Of the last layer's heads, which the output reads linearly, exactly; in the same order of axes."""
    exact = patch(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", METRIC, by="TN") - METRIC(MODEL(PARAMS, CORRUPTED))
    first = attribution(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", METRIC, by="TN")
    assert first.shape == exact.shape == (2, 6, 2)
    np.testing.assert_allclose(first[1], exact[1], atol=1e-5)
    small = jax.tree.map(
        lambda clean, corrupted: corrupted + 1e-3 * (clean - corrupted), *map(values, (CLEAN, CORRUPTED))
    )
    moved = METRIC(look(MODEL, PARAMS, CORRUPTED, edits=[Replace("resid_mid", layers=0, values=small)]).logits)
    gradient = attribution(MODEL, PARAMS, CORRUPTED, CLEAN, "resid_mid", METRIC)[0]
    assert float(moved - METRIC(MODEL(PARAMS, CORRUPTED))) / 1e-3 == pytest.approx(float(gradient), rel=0.2, abs=1e-3)


def test_attribution_is_of_the_difference_in_any_order_of_axes() -> None:
    """Of b less a token that is nowhere, to which the corrupted text's own values give something too."""
    metric = logit_difference(jnp.array([1]), jnp.array([5]))
    here = metric(MODEL(PARAMS, CORRUPTED))
    exact = patch(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", metric, by="NT") - here
    first = attribution(MODEL, PARAMS, CORRUPTED, CLEAN, "attn_head", metric, by="NT")
    assert here > 0.1 and first.shape == exact.shape == (2, 2, 6)
    np.testing.assert_allclose(first[1], exact[1], atol=1e-5)


def test_edited_logits_show_nothing_that_is_hidden() -> None:
    pattern = look(MODEL, PARAMS, CLEAN, ["attn_pattern"], [Zero("attn_logits")]).taps["attn_pattern"]
    wanted = np.tri(6) / np.arange(1, 7)[:, None]
    np.testing.assert_allclose(pattern, np.broadcast_to(wanted, pattern.shape), rtol=1e-6)


def values(tokens: np.ndarray) -> jax.Array:
    return look(MODEL, PARAMS, tokens, taps=["resid_mid"]).taps["resid_mid"]


def test_the_kinds_of_the_heads() -> None:
    pattern = look(MODEL, PARAMS, CLEAN, taps=["attn_pattern"]).taps["attn_pattern"]  # [L, B, N, T, S]
    assert previous_token(pattern)[0, 0, 0] == pytest.approx(1) and previous_token(pattern)[1, 0, 0] < 0.5
    assert induction(pattern, jnp.asarray(CLEAN))[1, 0, 0] == pytest.approx(1)
    uniform = pattern[1, 0, 1]  # a head that is nothing looks everywhere alike
    np.testing.assert_allclose(sink_mass(uniform), np.mean(1 / np.arange(2, 7)), rtol=1e-5)
    assert duplicate_token(uniform, jnp.asarray(CLEAN[0])) == pytest.approx(1 / 6)


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
