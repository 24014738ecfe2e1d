"""Positions against the formulas of their papers."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model.positions import Learned, Positions, Rotary, Sinusoidal
from tests.model.reference import close, turned

X = np.random.default_rng(0).standard_normal((1, 7, 2, 8)).astype(np.float32)


def rotated(x: np.ndarray, positions: np.ndarray, theta: float = 100.0) -> np.ndarray:
    rotary = Rotary(theta=theta)
    return np.asarray(rotary.rotate(jnp.asarray(x), rotary.table(jnp.asarray(positions)[None], x.shape[-1])))


def test_rotary_turns_complex_numbers() -> None:
    found = rotated(X, np.arange(7))
    for n in range(2):
        close(found[0, :, n], turned(X[0, :, n], 100.0))


@settings(max_examples=30, deadline=None)
@given(shift=st.integers(0, 500))
def test_rotary_products_see_distances_only(shift: int) -> None:
    here, there = rotated(X, np.arange(7)), rotated(X, np.arange(7) + shift)
    products = [np.einsum("tnh,snh->nts", a[0], a[0]) for a in (here, there)]
    close(products[1], products[0], 1e-4)
    close(np.linalg.norm(there, axis=-1), np.linalg.norm(X, axis=-1), 1e-4)


def test_rotary_at_zero_is_the_identity_and_keeps_the_dtype() -> None:
    np.testing.assert_array_equal(rotated(X, np.zeros(7, np.int32)), X)
    assert rotated(X.astype(jnp.bfloat16), np.arange(7)).dtype == jnp.bfloat16


@pytest.mark.parametrize("width", [8, 9])
def test_sinusoidal_is_the_paper_s(width: int) -> None:
    """1706.03762, section 3.5: sin and cos of pos / longest^(2i/D)."""
    positions = np.array([[0, 1, 5, 300]])
    found = Sinusoidal(longest=50.0).embed(None, jnp.zeros((1, 4, width)), jnp.asarray(positions), 1000)
    angles = positions[..., None] / 50.0 ** (2 * np.arange(4) / 8)
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((1, 4, width - 8))], axis=-1)
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_the_seats_not_taken_do_nothing() -> None:
    for positions in (Positions(), Learned(), Sinusoidal()):
        assert positions.rotate(X, positions.table(jnp.arange(7)[None], 8)) is X
        assert positions.bias(jnp.arange(7)[None], jnp.arange(7)[None], 2) is None
    for positions in (Positions(), Rotary()):
        assert positions.embed(None, X, jnp.arange(7)[None], 7) is X


def test_rotary_needs_pairs() -> None:
    with pytest.raises(ValueError, match="rotary positions turn pairs: attention.head_dim=5 is odd, try 6"):
        Rotary().check(5)
