"""The kernels in C: products and attention as XLA has them, with gradients, and each row's bits its own."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.native import FEW, MOST, TOKENS, Streamed, attend, attend_trained, attends, has_kernel
from lm.model.products import linear, linears
from tests.model.reference import SIMPLE, close

pytestmark = pytest.mark.skipif(not has_kernel(), reason="no C compiler, or another processor")
product = jax.jit(linear, static_argnums=(2, 3))
several = jax.jit(linears, static_argnums=2)
attention = jax.jit(attend)


@jax.jit
def gradients(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | None, dy: jax.Array) -> tuple[Any, ...]:
    """dq, dk and dv."""
    return jax.vjp(lambda q, k, v: attend_trained(q, k, v, allowed), q, k, v)[1](dy)


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(w: Any, dtype: str, by_output: bool) -> Streamed:
    """The matrix w, in memory as it is or the other way round."""
    return Streamed(w.T.astype(dtype), w.shape[::-1]).T if by_output else Streamed(w.astype(dtype), w.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize("sizes", [(16, 8), (5, 3), (50, 37), (33, 150), (576, 200)])
def test_a_product_is_xla_s(dtype: str, by_output: bool, sizes: tuple[int, int]) -> None:
    """Of sizes that are no whole vectors or tiles, on one thread and on several, and of more rows than it takes."""
    w = stored(numbers(*sizes), dtype, by_output)
    for rows in (1, 6, 32, FEW + 1):
        x = numbers(rows, 1, sizes[0], seed=1)
        close(product(x, w, SIMPLE, 1), np.asarray(x, np.float64) @ np.asarray(w.rounded(), np.float64), 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("by_output", [False, True])
def test_a_row_has_the_same_bits_in_any_company(by_output: bool, dtype: str) -> None:
    """Alone, as the last of a group of rows and behind it; of inputs that are no whole vectors, too."""
    w, x = stored(numbers(329, 300), dtype, by_output), numbers(FEW, 1, 329, seed=1)
    every = np.asarray(product(x, w, SIMPLE, 1))
    for rows in (1, 2, 3, 8, 13, 32):
        for first in (0, FEW - rows):
            np.testing.assert_array_equal(product(x[first:][:rows], w, SIMPLE, 1), every[first:][:rows])


def test_matrices_together_are_each_alone() -> None:
    """More than one call takes, too."""
    ws = [stored(numbers(64, 16 * i + 5, seed=i), "float32", False) for i in range(MOST + 2)]
    x = numbers(3, 1, 64, seed=99)
    for y, w in zip(several(x, ws, SIMPLE), ws, strict=True):
        np.testing.assert_array_equal(y, product(x, w, SIMPLE, 1))


def test_inputs_and_outputs_of_two_axes() -> None:
    w, x = numbers(3, 4, 7, 2), numbers(2, 5, 3, 4, seed=1)
    close(product(x, Streamed(w, w.shape), SIMPLE, 2), np.einsum("btnh,nhdk->btdk", x, w), 1e-5)


def test_callers_in_several_threads_do_not_mix() -> None:
    ws = [Streamed(numbers(256, 512, seed=i), (256, 512)) for i in range(4)]
    x = numbers(2, 1, 256)
    expected = [np.asarray(product(x, w, SIMPLE, 1)) for w in ws]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for got, wanted in zip(pool.map(lambda w: np.asarray(product(x, w, SIMPLE, 1)), ws), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)


def reference(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array) -> np.ndarray:
    logits = np.einsum("bkgth,bksh->bkgts", np.asarray(q, np.float64), np.asarray(k, np.float64))
    logits = np.where(np.asarray(allowed)[:, None, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bkgts,bksv->bkgtv", weights / weights.sum(-1, keepdims=True), np.asarray(v, np.float64))


def case(B: int, K: int, G: int, T: int, S: int, H: int, V: int) -> tuple[Any, ...]:
    allowed = np.random.default_rng(3).random((B, T, S)) < 0.4
    allowed[:, :, S // 2] = True
    return numbers(B, K, G, T, H), numbers(B, K, S, H, seed=1), numbers(B, K, S, V, seed=2), allowed


@pytest.mark.parametrize(
    "sizes",
    [(3, 2, 3, 1, 256, 64, 64), (2, 1, 4, 5, 100, 24, 40), (1, 1, 1, 1, 7, 5, 3), (2, 2, 3, 32, 70, 16, 16)]
    + [(2, 1, 3, 45, 200, 24, 40), (1, 2, 1, 33, 96, 5, 3), (1, 1, 1, 300, 97, 24, 72)],
)
def test_attention_is_softmax(sizes: tuple[int, ...]) -> None:
    q, k, v, allowed = case(*sizes)
    close(attention(q, k, v, allowed), reference(q, k, v, allowed), 1e-5)
    sharp = q * 20  # most keys have no weight; logits are rounded at 1e-5
    close(attention(sharp, k, v, allowed), reference(sharp, k, v, allowed), 1e-4)


def test_attention_has_a_row_s_own_bits() -> None:
    """Whoever is beside it, and whatever is in the places that it may not look at, or behind them."""
    q, k, v, allowed = case(3, 2, 2, 1, 200, 16, 16)
    allowed[:, :, 130:] = False
    out = np.asarray(attention(q, k, v, allowed))
    for i in range(3):
        np.testing.assert_array_equal(attention(*(a[i : i + 1] for a in (q, k, v, allowed))), out[i : i + 1])
    other = (np.where(allowed[:, :, :, None], a, np.float32(np.nan)) for a in (k, v))
    np.testing.assert_array_equal(attention(q, *other, allowed), out)
    np.testing.assert_array_equal(attention(q, k[:, :, :140], v[:, :, :140], allowed[:, :, :140]), out)


def test_attention_to_nothing_is_zero_and_what_is_not_a_number_stays() -> None:
    q, k, v, allowed = case(2, 1, 1, 1, 70, 8, 8)
    q[1], allowed[0] = np.nan, False
    out = np.asarray(attention(q, k, v, allowed))
    np.testing.assert_array_equal(out[0], 0)
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("T", [5, 150])
def test_attention_to_all_keys_and_by_one_mask_for_a_batch(T: int) -> None:
    q, k, v, allowed = case(2, 2, 1, T, 130, 16, 16)
    for given, same in ((None, np.ones((2, T, 130), bool)), (allowed[:1], np.repeat(allowed[:1], 2, axis=0))):
        np.testing.assert_array_equal(attention(q, k, v, given), attention(q, k, v, same))


def test_many_queries_have_their_own_bits() -> None:
    """Whoever is beside them, wherever they lie in a tile, and whatever nobody looks at."""
    q, k, v, allowed = case(2, 1, 2, 150, 200, 16, 16)
    allowed[:, :, 110:] = allowed[:, 7] = False
    out = np.asarray(attention(q, k, v, allowed))
    np.testing.assert_array_equal(attention(*(a[1:] for a in (q, k, v, allowed))), out[1:])
    np.testing.assert_array_equal(attention(q[:, :, 1:], k, v, allowed), out[:, :, 1:])
    np.testing.assert_array_equal(attention(q[:, :, :, 9:], k, v, allowed[:, 9:]), out[:, :, :, 9:])
    unseen = (np.where(np.arange(200)[:, None] < 110, a, np.float32(np.nan)) for a in (k, v))
    np.testing.assert_array_equal(attention(q, *unseen, allowed), out)
    np.testing.assert_array_equal(out[:, :, :, 7], 0)


def gradients_by_hand(q: Any, k: Any, v: Any, allowed: Any, dy: Any) -> tuple[np.ndarray, ...]:
    q, k, v, dy = (np.asarray(a, np.float64) for a in (q, k, v, dy))
    logits = np.einsum("bkgth,bksh->bkgts", q, k)
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * np.asarray(allowed)[:, None, None]
    p = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    dp = np.einsum("bkgtv,bksv->bkgts", dy, v)
    dlogits = p * (dp - (p * dp).sum(-1, keepdims=True))
    dv = np.einsum("bkgts,bkgtv->bksv", p, dy)
    return np.einsum("bkgts,bksh->bkgth", dlogits, k), np.einsum("bkgts,bkgth->bksh", dlogits, q), dv


@pytest.mark.parametrize(
    "sizes",
    [(3, 2, 2, 7, 7, 16, 16), (2, 1, 3, 45, 200, 24, 40), (1, 2, 1, 33, 96, 5, 3), (1, 1, 2, 70, 1700, 8, 8)],
)
def test_gradients_of_attention_are_softmax_s(sizes: tuple[int, ...]) -> None:
    """Of few queries too, of sizes that are no whole vectors or tiles, and of keys that are several tasks."""
    q, k, v, allowed = case(*sizes)
    dy = numbers(*q.shape[:-1], v.shape[-1], seed=5)
    for found, expected in zip(gradients(q, k, v, allowed, dy), gradients_by_hand(q, k, v, allowed, dy), strict=True):
        close(found, expected, 1e-4)


def test_attention_is_the_same_to_the_bit_whether_it_is_differentiated() -> None:
    """Of few queries too: a policy before its first update is its reference."""
    q, k, v, allowed = case(2, 1, 2, 5, 70, 8, 8)
    alone = jax.jit(attend_trained)(q, k, v, allowed)
    beside = jax.jit(lambda *a: jax.vjp(attend_trained, *a, allowed)[0])(q, k, v)
    np.testing.assert_array_equal(alone, beside)


def test_causal_gradients_skip_what_no_query_sees() -> None:
    """A tile in which only some queries see a key, the first, the last or those between, by a window."""
    q, k, v, _ = case(1, 1, 2, 300, 300, 8, 8)
    dy, distance = numbers(*q.shape, seed=5), np.arange(300)[:, None] - np.arange(300)
    for allowed in ((distance >= 0)[None], ((distance >= 0) & (distance < 50))[None]):
        found = gradients(q, k, v, allowed, dy)
        for one, expected in zip(found, gradients_by_hand(q, k, v, allowed, dy), strict=True):
            close(one, expected, 1e-4)
        close(attention(q, k, v, allowed), reference(q, k, v, allowed), 1e-5)


def test_gradients_are_the_same_however_they_are_asked_for() -> None:
    """Again, by one mask for a batch, by none where all keys are seen, and whatever is in a key that nobody sees, which
    has none, as a query that sees nothing."""
    q, k, v, allowed = case(2, 2, 1, 150, 900, 16, 16)
    dy = numbers(*q.shape, seed=5)

    def same(one: Any, other: Any) -> None:
        jax.tree.map(np.testing.assert_array_equal, one, other)

    every = np.ones((2, 150, 900), bool)
    same(gradients(q, k, v, None, dy), gradients(q, k, v, every, dy))
    same(gradients(q, k, v, allowed[:1], dy), gradients(q, k, v, np.repeat(allowed[:1], 2, axis=0), dy))
    allowed[:, :, 110:] = allowed[:, 7] = False
    found = jax.device_get(gradients(q, k, v, allowed, dy))
    unseen = (np.where(np.arange(900)[:, None] < 110, a, np.float32(np.nan)) for a in (k, v))
    same(gradients(q, *unseen, allowed, dy), found)
    assert not found[0][:, :, :, 7].any() and not found[1][:, :, 110:].any() and not found[2][:, :, 110:].any()


def test_what_attention_does_not_take() -> None:
    q, k, v, _ = case(1, 1, 2, TOKENS, 8, 8, 8)
    assert attends(q, k, v) and not attends(q, k.astype(jnp.bfloat16), v)
    assert not attends(jnp.zeros((1, 1, 1, 2, 1025)), k, v)
