"""Patterns for a page: the largest of each query, read back from bytes as the page's script reads them."""

import zlib

import jax
import numpy as np
import pytest

from lm.inspect.patterns import Attention, keep, most_keys, pack, pack_all

L, N, T = 2, 3, 7
kept = jax.jit(keep, static_argnums=(1, 2))


def pattern(S: int = T, causal: bool = True) -> np.ndarray:
    """[L, N, T, S]."""
    logits = np.random.default_rng(0).normal(0, 3, (L, N, T, S))
    weights = np.exp(logits) * (np.tri(T, S) if causal else 1)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def attention(pattern: np.ndarray, k: int, sinks: tuple[int, ...] = (0,)) -> Attention:
    return Attention("attention", "text", "text", range(L), sinks, kept(pattern, k, sinks))


def unpacked(data: bytes, shape: tuple[int, ...], sinks: tuple[int, ...]) -> np.ndarray:
    """The pattern in steps of 1/255, read as inside.js reads it."""
    raw = np.frombuffer(data, np.uint8)
    rows = int(np.prod(shape[:-1]))
    counts, apart, rest = raw[:rows], raw[rows : rows * (1 + len(sinks))], raw[rows * (1 + len(sinks)) :]
    total = int(counts.sum())
    low, high, steps = (rest[i * total : (i + 1) * total].astype(int) for i in range(3))
    found = np.zeros((rows, shape[-1]), int)
    found[:, list(sinks)] = apart.reshape(rows, -1)
    start = 0
    for row, count in enumerate(counts.tolist()):
        for i in range(start, start + count):
            found[row, (row % shape[2] - (low[i] | high[i] << 8)) & 0xFFFF] = steps[i]
        start += count
    assert len(rest) == 3 * total
    return found.reshape(shape)


@pytest.mark.parametrize(("S", "causal", "sinks"), [(T, True, (0,)), (T, False, (0, T - 1)), (11, False, (0,))])
def test_all_keys_are_read_back_within_half_a_step(S: int, causal: bool, sinks: tuple[int, ...]) -> None:
    known = pattern(S, causal)
    one = attention(known, S, sinks)
    found = unpacked(pack(one, S), known.shape, sinks)
    np.testing.assert_allclose(found / 255, known, atol=0.5 / 255 + 1e-6)
    rows = one.plain()
    assert {key: round(p * 255) for key, p in rows[1][2][4]} == {i: v for i, v in enumerate(found[1, 2, 4]) if v}
    assert [p for _, p in rows[1][2][4]] == sorted((p for _, p in rows[1][2][4]), reverse=True)


def test_of_few_keys_the_largest_are_kept_and_the_sink_beside() -> None:
    known = pattern()
    found = unpacked(pack(attention(known, T), 2), known.shape, (0,))
    np.testing.assert_allclose(found[..., 0] / 255, known[..., 0], atol=0.5 / 255 + 1e-6)
    others = np.sort(known[..., 1:], -1)[..., -2:]
    np.testing.assert_allclose(np.sort(found[..., 1:], -1)[..., -2:] / 255, others, atol=0.5 / 255 + 1e-6)
    assert ((found[..., 1:] > 0).sum(-1) <= 2).all()


def test_as_many_keys_as_fit() -> None:
    one = attention(pattern(), T)
    packed, k = pack_all([one], 10**6)
    assert k == T and packed == [pack(one, T)]
    limit = len(zlib.compress(packed[0], 6)) - 1
    fewer, less = pack_all([one], limit)
    assert less < k and len(zlib.compress(fewer[0], 6)) <= limit
    assert pack_all([one], 0)[1] == 1 and pack_all([], 0) == ([], 1)


def test_long_texts_have_few_keys() -> None:
    assert most_keys(30, 9, 64, 64) == 64
    assert most_keys(30, 9, 1000, 1000) == 18
    assert most_keys(80, 64, 2048, 2048) == 16
    assert most_keys(1, 1, 2048, 2048) == 255
