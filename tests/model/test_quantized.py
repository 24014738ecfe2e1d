"""Matrices in fewer bits: the published code, and the formulas by numpy, weight by weight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from lm.model.quantized import BLOCK, NF4, NORMAL_FLOAT, BFloat16, Int8PerChannel

STACKED = ("layers", "embed", "mlp")


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_code_is_the_quantiles_of_a_normal_distribution() -> None:
    """2305.14314, equation 4, with zero and both ends exact: 8 values above and 7 below it."""
    offset = 0.5 * (31 / 32 + 29 / 30)
    above, below = (norm.ppf(np.linspace(offset, 0.5, n + 1))[:-1] for n in (8, 7))
    values = np.sort([*above, 0, *-below]) / above.max()
    np.testing.assert_allclose(NORMAL_FLOAT, values, atol=2e-7)


@jax.jit
def nf4(w: Any) -> tuple[NF4, jax.Array, jax.Array]:
    """What is kept of w, that made dense, and what is kept of that made dense."""
    kept = NF4.of(w, STACKED)
    return kept, kept.dense, NF4.of(kept.dense, STACKED).dense


@pytest.mark.parametrize("outputs", [64, 80, 6])
def test_nf4_is_the_nearest_value_times_the_block_s_largest(outputs: int) -> None:
    w, levels = weights(2, 3, outputs), np.array(NORMAL_FLOAT, np.float32)
    w[0, 0] = 0
    kept, dense, again = nf4(w)
    assert kept.codes.shape == (2, 3, outputs // 2) and kept.absmax.shape == (2, 3, -(-outputs // BLOCK))
    expected = np.empty_like(w)
    for at in np.ndindex(2, 3):
        for start in range(0, outputs, BLOCK):
            block = w[at][start : start + BLOCK]
            most = np.abs(block).max()
            nearest = np.abs(block[:, None] / (most or 1) - levels).argmin(1)
            expected[at][start : start + BLOCK] = levels[nearest] * most
    np.testing.assert_array_equal(dense, expected)
    np.testing.assert_array_equal(again, dense)


def test_the_first_of_two_weights_is_in_the_high_bits() -> None:
    kept = NF4.of(jnp.asarray([[-1.0, 1.0, 0.0, 0.5626170039176941]]), ("embed", "mlp"))
    assert np.asarray(kept.codes).tolist() == [[0x0F, 0x7D]] and kept.absmax.tolist() == [[1.0]]


def test_int8_has_a_scale_for_each_output() -> None:
    w = weights(2, 5, 4)
    w[1, :, 2] = 0
    kept = Int8PerChannel.of(jnp.asarray(w), STACKED)
    assert kept.values.dtype == jnp.int8 and kept.scale.shape == (2, 1, 4)
    np.testing.assert_allclose(kept.scale, np.abs(w).max(1, keepdims=True) / 127, rtol=1e-6)
    np.testing.assert_array_equal(kept.values, np.round(w / np.where(kept.scale, kept.scale, 1)))
    np.testing.assert_array_equal(kept.dense, np.float32(kept.values) * kept.scale)
    heads = Int8PerChannel.of(jnp.asarray(weights(2, 5, 2, 2)), ("layers", "embed", "heads", "head_dim"))
    assert heads.scale.shape == (2, 1, 2, 2)
    out = Int8PerChannel.of(jnp.asarray(weights(2, 2, 2, 5)), ("layers", "heads", "head_dim", "embed"))
    assert out.scale.shape == (2, 1, 1, 5)


def test_bfloat16_is_rounded_to() -> None:
    w = jnp.asarray(weights(2, 3, 4))
    kept = BFloat16.of(w, STACKED)
    assert kept.values.dtype == jnp.bfloat16 and kept.dense.dtype == jnp.float32
    np.testing.assert_array_equal(kept.dense, w.astype(jnp.bfloat16).astype(jnp.float32))
