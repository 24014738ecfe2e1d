"""Positions against the formulas of their papers."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model.compute import Compute
from lm.model.inputs import Inputs
from lm.model.positions import (
    Alibi,
    Learned,
    LearnedAfter,
    PartialRotary,
    Positions,
    Relative,
    RelativeByLayer,
    Rotary,
    Sinusoidal,
    slopes,
)
from lm.model.scaling import Dynamic, Linear, Llama3, LongRoPE, Scaling, YaRN, plain_angles
from lm.model.transformer import Distances, Transformer
from tests.model.reference import GPT, MODELS, SIMPLE, close, lively, run, turned

X = np.random.default_rng(0).standard_normal((1, 7, 2, 8)).astype(np.float32)


def rotated(x: np.ndarray, positions: np.ndarray, theta: float = 100.0) -> np.ndarray:
    rotary = Rotary(theta=theta)
    return np.asarray(rotary.rotate(jnp.asarray(x), rotary.table(jnp.asarray(positions)[None], x.shape[-1]), SIMPLE))


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


def test_rotary_s_gradient_turns_back() -> None:
    def turn(x: np.ndarray) -> jax.Array:
        table = Rotary(theta=100.0).table(jnp.arange(7)[None], 8)
        return Rotary(theta=100.0).rotate(jnp.asarray(x), table, SIMPLE)

    (back,) = jax.vjp(turn, X)[1](turn(X))
    close(back, X, 1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotary_by_a_product_is_the_same(dtype: jnp.dtype) -> None:
    """A TPU exchanges the halves by a permutation matrix."""

    def both(compute: Compute, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        table = Rotary().table(jnp.arange(7)[None], 8)
        y, pull = jax.vjp(lambda x: Rotary().rotate(x, table, compute), x)
        return y, pull(y[..., ::-1])[0]

    tpu, cpu = (jax.jit(partial(both, compute)) for compute in (replace(SIMPLE, backend="tpu"), SIMPLE))
    x = np.asarray(X, dtype)
    assert "dot_general" in str(jax.make_jaxpr(tpu)(x))
    for found, expected in zip(tpu(x), cpu(x), strict=True):
        assert found.dtype == dtype
        close(np.float32(found), np.float32(expected), 1e-6 if dtype == jnp.float32 else 1e-2)


@pytest.mark.parametrize("width", [8, 9])
def test_sinusoidal_is_the_paper_s(width: int) -> None:
    """1706.03762, section 3.5: sin and cos of pos / max_wavelength^(2i/D)."""
    positions = np.array([[0, 1, 5, 300]])
    found = Sinusoidal(max_wavelength=50.0).embed(None, jnp.zeros((1, 4, width)), jnp.asarray(positions), 1000)
    angles = positions[..., None] / 50.0 ** (2 * np.arange(4) / 8)
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((1, 4, width - 8))], axis=-1)
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_the_seats_not_taken_do_nothing() -> None:
    for positions in (Positions(), Learned(), Sinusoidal()):
        assert positions.rotate(X, positions.table(jnp.arange(7)[None], 8), SIMPLE) is X
        assert positions.bias(None, jnp.arange(-6, 7), 2, True) is None
    for positions in (Positions(), Rotary()):
        assert positions.embed(None, X, jnp.arange(7)[None], 7) is X


def test_rotary_needs_pairs() -> None:
    with pytest.raises(ValueError, match="rotary positions turn pairs: attention.head_dim=5 is odd, try 6"):
        Rotary().check(5)


# ---------------------------------------------------------------- scaling


def angles(scaling: Scaling, max_wavelength: int = 0, head_dim: int = 32, theta: float = 1e4) -> np.ndarray:
    return np.asarray(scaling(theta, head_dim, jnp.arange(max_wavelength + 1)[None])[0], np.float64)


def test_linear_is_positions_divided() -> None:
    close(rotated(X, np.arange(7)), turned_by(Rotary(100.0, Linear(factor=4.0)), 4 * np.arange(7)))


def turned_by(rotary: Rotary, positions: np.ndarray) -> np.ndarray:
    return np.asarray(rotary.rotate(jnp.asarray(X), rotary.table(jnp.asarray(positions)[None], 8), SIMPLE))


def test_dynamic_begins_where_the_training_ended() -> None:
    plain = np.asarray(plain_angles(1e4, 32), np.float64)
    scaling = Dynamic(factor=2.0, original_context=64)
    np.testing.assert_allclose(angles(scaling, 63), plain, rtol=1e-6)
    longer = angles(scaling, 127)
    assert longer[0] == plain[0] and (longer[1:] < plain[1:]).all()
    assert longer[-1] == pytest.approx(plain[-1] / (2.0 * 128 / 64 - 1), rel=1e-5)  # the last pair: interpolated


def test_longrope_s_factors_are_those_of_a_row_s_own_length() -> None:
    """Whatever stands beside it."""
    scaling = LongRoPE((1.0, 1.5), (2.0, 4.0), original_context=8)
    both, size = scaling(100.0, 4, jnp.array([[0, 3, 7], [6, 7, 8]]))
    plain = np.asarray(plain_angles(100.0, 4))
    np.testing.assert_allclose(both[:, 0, 0], [plain / [1.0, 1.5], plain / [2.0, 4.0]], rtol=1e-6)
    assert size == 1.0
    with pytest.raises(ValueError, match="positions.scaling.short_factor has 2 numbers for 3 pairs: expected one each"):
        Rotary(100.0, scaling).check(6)


def test_a_part_of_a_head_is_turned_and_the_rest_stays() -> None:
    partly, positions = PartialRotary(100.0, fraction=0.6), np.arange(7)
    found = turned_by(partly, positions)
    np.testing.assert_array_equal(found[..., 4:], X[..., 4:])
    table = Rotary(100.0).table(jnp.asarray(positions)[None], 4)
    close(found[..., :4], np.asarray(Rotary(100.0).rotate(jnp.asarray(X[..., :4]), table, SIMPLE)))
    with pytest.raises(ValueError, match="fraction=0.6 of attention.head_dim=6 is 3 numbers, try 0.666667"):
        partly.check(6)


def test_llama3_keeps_the_fast_and_slows_the_slow() -> None:
    """2407.21783's appendix by wavelengths, one pair at a time."""
    scaling = Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=512)
    for plain, scaled in zip(np.asarray(plain_angles(1e4, 32), np.float64), angles(scaling), strict=True):
        wavelength = 2 * math.pi / plain
        if wavelength < 512 / 4:
            expected = plain
        elif wavelength > 512:
            expected = plain / 8
        else:
            smooth = (512 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert scaled == pytest.approx(expected, rel=1e-5)


def test_yarn_ramps_between_its_ends() -> None:
    """2309.00071, section 3.2 and 3.4."""
    scaling = YaRN(factor=16.0, original_context=512)
    plain, found = np.asarray(plain_angles(1e4, 32), np.float64), angles(scaling)
    turns = 512 * plain / (2 * math.pi)
    np.testing.assert_allclose(found[turns > 40], plain[turns > 40], rtol=1e-6)
    np.testing.assert_allclose(found[turns < 0.7], plain[turns < 0.7] / 16, rtol=1e-6)
    assert (np.diff(found / plain) <= 1e-7).all()
    assert scaling(1e4, 32, jnp.zeros((1, 1)))[1] == pytest.approx(0.1 * math.log(16) + 1)
    assert YaRN(16.0, 512, attention_factor=1.5)(1e4, 32, jnp.zeros((1, 1)))[1] == 1.5


# ---------------------------------------------------------------- biases


def test_alibi_s_slopes() -> None:
    """2108.12409, section 3: 1/2, 1/4 ... for 8 heads; of 12 heads the last four lie between those of 8."""
    np.testing.assert_allclose(slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(slopes(12)[8:], [2.0 ** -(i + 0.5) for i in range(4)], rtol=1e-6)
    bias = Alibi().bias(None, jnp.array([-3, 0, 2]), 8, False)
    np.testing.assert_allclose(bias, -np.outer(slopes(8), [3, 0, 2]))


@pytest.mark.parametrize("causal", [True, False])
def test_relative_buckets(causal: bool) -> None:
    """1910.10683, section 2.1: single distances first, then by their logarithm, the last for all beyond."""
    away = np.arange(-200, 201)
    found = buckets(Relative(buckets=32, max_distance=128), away, causal)
    side, exact = (32, 16) if causal else (16, 8)
    back = found[away <= 0][::-1]
    assert back[:exact].tolist() == list(range(exact)) and back[exact] == exact
    assert (np.diff(back) >= 0).all() and back[128] == back[200] == side - 1 and back[100] < side
    ahead = found[away > 0]
    assert (ahead == 0).all() if causal else (ahead == back[1:] + side).all()


def buckets(positions: Relative, away: np.ndarray, causal: bool) -> np.ndarray:
    """The bucket of each distance: a table whose rows are their own numbers."""
    module = Distances(replace(GPT, positions=positions, causal=causal))
    table = {"params": {"relative": jnp.arange(32.0)[:, None] * jnp.ones((1, 3))}}
    return np.asarray(module.apply(table, jnp.asarray(away)))[0].astype(int)


def test_the_first_rows_of_learned_after_are_of_no_position() -> None:
    """It is a `Learned` of the rows after them."""
    after = replace(GPT, positions=LearnedAfter(offset=3))
    params, ids = lively(after), jnp.arange(9)[None]
    table = params["stem"]["positions"]
    assert table.shape == (GPT.context + 3, GPT.width)
    plain = {**params, "stem": {**params["stem"], "positions": table[3:]}}
    close(run(Transformer(after, SIMPLE), params, ids), run(Transformer(GPT, SIMPLE), plain, ids))


def test_a_table_in_every_layer_is_that_layer_s() -> None:
    """With equal tables it is `Relative`; without a cache as with one, whose rows are at offsets of their own."""
    shared = MODELS["relative"]
    own = replace(shared, positions=RelativeByLayer(8, 16))
    params, ids = lively(own), jnp.asarray(np.random.default_rng(0).integers(0, own.vocab, (2, 9)))
    tables = params["layers"]["0"]["relative"]
    assert tables.shape == (2, 8, 3) and "relative" not in params["stem"]
    layers = {name: x for name, x in params["layers"]["0"].items() if name != "relative"}
    once = {**params, "layers": {"0": layers}, "stem": {**params["stem"], "relative": tables[0]}}
    equal = {**params, "layers": {"0": {**layers, "relative": jnp.stack([tables[0]] * 2)}}}
    model = Transformer(own, SIMPLE)
    close(run(model, equal, ids), run(Transformer(shared, SIMPLE), once, ids))
    assert float(jnp.abs(run(model, params, ids) - run(model, equal, ids)).max()) > 1e-3
    hidden = jax.jit(model.hidden)
    whole, cache = hidden(params, ids).x, model.empty_cache(2, 12)
    segments = jnp.asarray([[1] * 5, [1] * 3 + [0] * 2])
    cache = hidden(params, Inputs(ids[:, :5], segments=segments), cache).cache
    following = jnp.stack([ids[0, 5:6], ids[1, 3:4]])
    step = hidden(params, following, cache).x
    close(step[0, 0], whole[0, 5])
    close(step[1, 0], whole[1, 3])
