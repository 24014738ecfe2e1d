"""Attention: every kernel against a loop over queries and heads, and the heads against one another."""

import re
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lm.model.scoring
from lm.model.attention import Attention
from lm.model.compute import Compute
from lm.model.kernels import KERNELS
from lm.model.native import has_kernel
from lm.model.parts import FeedForward
from lm.model.scoring import Mask, Scoring, Span, _cut, cached, product
from lm.model.transformer import Transformer
from lm.sharding.mesh import make_mesh
from lm.sharding.tracing import use_mesh
from lm.tune.pretrain import Pretrain
from tests.model.reference import LLAMA, SIMPLE, close, lively, run, tokens, trees_close

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def heads(T: int, N: int = 4, K: int = 2, S: int | None = None) -> Arrays:
    """Queries [2, T, N, 6], keys [2, S, K, 6] and values [2, S, K, 5]."""
    rng = np.random.default_rng(0)
    shapes = (2, T, N, 6), (2, S or T, K, 6), (2, S or T, K, 5)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return q, k, v


def by_hand(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, may: Any, bias: Any = None, softcap: float = 0, sinks: Any = None
) -> np.ndarray:
    """Attention of each query alone; may(b, t, s) says whether it sees key s; bias [N, T + S - 1] by distance."""
    B, T, N, _ = q.shape
    out = np.zeros((B, T, N, v.shape[-1]))
    for b, t, n in np.ndindex(B, T, N):
        seen = [s for s in range(k.shape[1]) if may(b, t, s)]
        if seen:
            kv = n // (N // k.shape[2])
            logits = k[b, seen, kv].astype(np.float64) @ q[b, t, n]
            logits = logits if bias is None else logits + bias[n, [s - t + T - 1 for s in seen]]
            logits = softcap * np.tanh(logits / softcap) if softcap else logits
            rest = 0 if sinks is None else np.exp(sinks[n] - logits.max())
            weights = np.exp(logits - logits.max())
            out[b, t, n] = weights / (weights.sum() + rest) @ v[b, seen, kv]
    return out


def call(
    name: str, arrays: Arrays, mask: Mask, bias: Any = None, softcap: float = 0, sinks: Any = None, block: int = 4
) -> Any:
    compute = replace(SIMPLE, attention=name, block=block, flat="yes")  # blocked: the batch in two pieces
    kernel = lambda q, k, v, m, b, s: KERNELS[name](q, k, v, Scoring(m, b, softcap, s), compute)  # noqa: E731
    return jax.jit(kernel)(*arrays, mask, bias, sinks)


def spans_of(parts: list[tuple[int, int]]) -> tuple[Span, ...]:
    """(start, size) -> spans of which neither starts nor stops go back."""
    starts, stops = sorted(start for start, _ in parts), sorted(start + size for start, size in parts)
    return tuple(Span(start, stop - start) for start, stop in zip(starts, stops, strict=True))


PARTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5).map(spans_of)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(PARTS, st.integers(0, 3)), min_size=1, max_size=12))
def test_the_gradient_of_parts_that_overlap(cases: list[tuple[tuple[Span, ...], int]]) -> None:
    rng, sizes = np.random.default_rng(0), [spans[-1].start + spans[-1].size + beyond for spans, beyond in cases]
    pulls = [[rng.standard_normal((2, span.size, 3)).astype(np.float32) for span in spans] for spans, _ in cases]

    @jax.jit
    def cut(pulls: list[list[jax.Array]]) -> Any:
        """Of each case, in one program."""
        found = []
        for (spans, _), size, own in zip(cases, sizes, pulls, strict=True):
            parts, pull = jax.vjp(partial(_cut, spans=spans, size=size, compute=SIMPLE), jnp.zeros((2, size, 3)))
            found.append((parts, pull(own)[0]))
        return found

    for (spans, _), size, own, (parts, gradient) in zip(cases, sizes, pulls, cut(pulls), strict=True):
        expected = np.zeros((2, size, 3))
        for span, pull in zip(spans, own, strict=True):
            expected[:, span.start : span.start + span.size] += pull
        assert [part.shape for part in parts] == [part.shape for part in own]
        close(gradient, expected)


PORTABLE = ("plain", "blocked", "flash", "native")
every_kernel = pytest.mark.parametrize("name", PORTABLE)


@pytest.mark.skipif(not has_kernel(), reason="no C compiler")
@pytest.mark.parametrize("matmul", ["float32", "bfloat16"])
def test_native_is_a_kernel_forward_and_backward(matmul: str) -> None:
    """In float32, whatever products are in; what shapes logits otherwise is computed by blocks."""
    compute, arrays = replace(SIMPLE, attention="native", block=8, matmul=matmul), heads(40)

    def attended(q: Any, k: Any, v: Any, name: str = "native", bias: Any = None) -> Any:
        return KERNELS[name](q, k, v, Scoring(Mask(), bias), compute)

    def calls(function: Any) -> set[str]:
        return set(re.findall(r"lm_attention\w*", str(jax.make_jaxpr(function)(*arrays))))

    def pull(name: str) -> Any:
        return jax.grad(lambda *a: (attended(*a, name=name) ** 2).sum(), (0, 1, 2))

    assert calls(attended) == {"lm_attention"} and not calls(partial(attended, bias=jnp.zeros((4, 79))))
    assert calls(pull("native")) == {"lm_attention", "lm_attention_gradients"}
    for found, expected in zip(*(jax.jit(pull(name))(*arrays) for name in ("native", "blocked")), strict=True):
        close(found, expected, 1e-5 if matmul == "float32" else 0.1)


@every_kernel
@pytest.mark.parametrize("T", [1, 4, 8, 11, 40])
def test_causal(name: str, T: int) -> None:
    arrays = heads(T)
    close(call(name, arrays, Mask()), by_hand(*arrays, lambda b, t, s: s <= t))


@every_kernel
def test_both_ways(name: str) -> None:
    arrays = heads(11)
    close(call(name, arrays, Mask(causal=False)), by_hand(*arrays, lambda b, t, s: True))


@every_kernel
def test_behind_a_cache(name: str) -> None:
    """Three queries at places 5 to 7 of keys that go on to 11."""
    arrays = heads(3, S=11)
    expected = by_hand(*arrays, lambda b, t, s: s <= t + 5)
    close(call(name, arrays, Mask(offset=5)), expected)
    close(call(name, arrays, Mask(offset=jnp.asarray(5))), expected)


@every_kernel
def test_segments_and_bias(name: str) -> None:
    arrays = heads(11)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 2, [0] * 3 + [1] * 8], np.int32)
    bias = np.random.default_rng(1).standard_normal((4, 21)).astype(np.float32)
    mask = Mask(query_segments=jnp.asarray(segments), key_segments=jnp.asarray(segments))
    expected = by_hand(*arrays, lambda b, t, s: s <= t and segments[b, t] == segments[b, s], bias)
    close(call(name, arrays, mask, bias), expected)


@every_kernel
@pytest.mark.parametrize("window", [1, 3, 4, 9, 30])
@pytest.mark.parametrize("causal", [True, False])
def test_windows(name: str, window: int, causal: bool) -> None:
    arrays = heads(11)
    expected = by_hand(*arrays, lambda b, t, s: abs(t - s) < window and (s <= t or not causal))
    close(call(name, arrays, Mask(causal=causal, window=window)), expected)


@every_kernel
def test_a_window_behind_a_cache(name: str) -> None:
    arrays = heads(3, S=11)
    expected = by_hand(*arrays, lambda b, t, s: t + 5 - 3 < s <= t + 5)
    close(call(name, arrays, Mask(offset=5, window=3)), expected)
    close(call(name, arrays, Mask(offset=jnp.asarray(5), window=3)), expected)


@every_kernel
def test_all_see_the_prefix(name: str) -> None:
    arrays, length = heads(11), np.array([3, 7])
    blocks = jnp.asarray(np.arange(11) < length[:, None], jnp.int32)
    expected = by_hand(*arrays, lambda b, t, s: s <= t or s < length[b])
    close(call(name, arrays, Mask(query_blocks=blocks, key_blocks=blocks)), expected)


@every_kernel
@pytest.mark.parametrize("window", [0, 3])
def test_a_block_sees_its_later_tokens_however_far(name: str, window: int) -> None:
    """And of its earlier ones, as of all, those in the window."""
    arrays = heads(11)
    blocks = np.array([[0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 0], [3, 3, 0, 0, 5, 5, 5, 5, 5, 5, 5]])

    def sees(b: int, t: int, s: int) -> bool:
        later = blocks[b, t] == blocks[b, s] > 0
        return (s <= t or later) and (not window or t - s < window)

    expected = by_hand(*arrays, sees)
    close(
        call(name, arrays, Mask(query_blocks=jnp.asarray(blocks), key_blocks=jnp.asarray(blocks), window=window)),
        expected,
    )


@every_kernel
@pytest.mark.parametrize("S", [7, 11])
def test_bias_cap_and_sinks(name: str, S: int) -> None:
    arrays, rng = heads(7, S=S), np.random.default_rng(1)
    bias, sinks = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 6 + S), 4))
    expected = by_hand(*arrays, lambda b, t, s: s <= t, bias, 1.5, sinks)
    close(call(name, arrays, Mask(), bias, 1.5, sinks), expected)


@every_kernel
def test_a_query_that_sees_nothing_gives_numbers(name: str) -> None:
    queries, keys = jnp.ones((2, 11), jnp.int32), jnp.zeros((2, 11), jnp.int32)
    assert np.isfinite(call(name, heads(11), Mask(query_segments=queries, key_segments=keys))).all()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """Of 257 ones: bfloat16 has no such number."""
    ones = jnp.ones((1, 1, 1, 1, 257), jnp.bfloat16)
    logits = product("bkgth,bksh->bkgts", ones, ones[0])
    assert logits.dtype == jnp.float32 and (logits == 257).all()


@every_kernel
def test_large_logits_do_not_overflow(name: str) -> None:
    q, k, v = heads(11)
    out = call(name, (q * 1e4, k, v), Mask())
    close(out, by_hand(q * 1e4, k, v, lambda b, t, s: s <= t), 1e-4)


@cache
def pulled(kernel: str, T: int, block: int) -> Any:
    """The gradients of queries, keys, values, a bias and sinks in two documents and padding."""
    segments = np.array([[1] * 5 + [2] * (T - 5), [1] * (T - 1) + [0]], np.int32)
    mask, compute = Mask(query_segments=segments, key_segments=segments), replace(SIMPLE, attention=kernel, block=block)
    shapes = (2, T, 4, 5), (4, 2 * T - 1), (4,)
    pull, bias, sinks = (np.random.default_rng(2).standard_normal(shape).astype(np.float32) for shape in shapes)

    def total(q: Any, k: Any, v: Any, bias: Any, sinks: Any) -> Any:
        return (KERNELS[kernel](q, k, v, Scoring(mask, bias, 2.0, sinks), compute) * pull).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3, 4)))(*heads(T), bias, sinks)


@pytest.mark.parametrize("name", PORTABLE[1:])
@pytest.mark.parametrize(("T", "block"), [(11, 4), (8, 4), (9, 100)])
def test_every_kernel_has_the_gradients_of_the_plain_one(name: str, T: int, block: int) -> None:
    trees_close(pulled(name, T, block), pulled("plain", T, block))


@every_kernel
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_are_repeated_heads(name: str, kv_heads: int) -> None:
    q, k, v = heads(11, K=kv_heads)
    k_all, v_all = (np.repeat(a, 4 // kv_heads, axis=2) for a in (k, v))
    close(call(name, (q, k, v), Mask()), call(name, (q, k_all, v_all), Mask()))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_model_with_repeated_heads_is_the_same(kv_heads: int) -> None:
    """MQA and GQA are MHA whose key and value projections are equal within a group."""
    few = replace(LLAMA, attention=Attention(heads=4, head_dim=4, kv_heads=kv_heads))
    many = replace(LLAMA, attention=Attention(heads=4, head_dim=4))
    params, ids = lively(few), tokens(LLAMA, 2, 11)
    repeated = {n: np.repeat(params["layers"]["0"][n], 4 // kv_heads, axis=2) for n in ("key", "value")}
    wide = {**params, "layers": {"0": {**params["layers"]["0"], **repeated}}}
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, lively(many))
    close(run(Transformer(few, SIMPLE), params, ids), run(Transformer(many, SIMPLE), wide, ids))
    assert Transformer(few, SIMPLE).empty_cache(2, 5).layers["0"].arrays[0].shape == (3, 2, kv_heads, 5, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Attention, heads=12, head_dim=4, kv_heads=5), "heads=12 is not a multiple of kv_heads=5: try 4 or 6"),
        (partial(Attention, heads=4, head_dim=4, kv_heads=8), "heads=4 is not a multiple of kv_heads=8: try 2 or 4"),
        (partial(Attention, heads=4, head_dim=4, kv_heads=-1), "attention.kv_heads=-1: expected at least 0"),
        (partial(Attention, heads=0, head_dim=4), "attention.heads=0: expected at least 1"),
        (partial(Attention, heads=4, head_dim=0), "attention.head_dim=0: expected at least 1"),
    ],
)
def test_heads_that_do_not_fit_say_which_would(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- the vendors' kernels


def long_heads(T: int, H: int = 16) -> Arrays:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, T, n, h)).astype(np.float32) for n, h in ((4, H), (2, H), (2, H // 2)))
    return q / 4, k, v


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 40}, {"causal": False}, {"causal": False, "window": 40}],
    ids=lambda o: str(o) or "causal",
)
def test_splash_is_plain(options: dict[str, Any]) -> None:
    """Interpreted on the CPU: 200 queries padded to 256, two documents and padding, sinks and a cap."""
    segments = jnp.asarray([[1] * 90 + [2] * 100 + [0] * 10, [1] * 200], jnp.int32)
    mask = Mask(segments, segments, **options)
    sinks = np.random.default_rng(3).standard_normal(4).astype(np.float32)
    arrays = long_heads(200)
    found, expected = (call(name, arrays, mask, None, 2.0, sinks) for name in ("splash", "plain"))
    close(found[:, :190], expected[:, :190])


def test_splash_on_a_mesh_is_single() -> None:
    mesh, arrays = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4]), long_heads(128)
    with use_mesh(mesh):
        close(call("splash", arrays, Mask()), call("plain", arrays, Mask()))


def test_splash_has_the_gradients_of_plain() -> None:
    arrays = long_heads(128)

    def gradients(name: str) -> Any:
        total = lambda *a: (KERNELS[name](*a, Scoring(Mask()), SIMPLE) ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*arrays)

    trees_close(gradients("splash"), gradients("plain"), 1e-4)


@pytest.mark.parametrize("options", [{}, {"window": 9}, {"causal": False}, {"causal": False, "window": 9}])
def test_what_cudnn_is_asked_for_is_plain(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN is not here: the same question put to JAX's own implementation."""
    ask, asked = jax.nn.dot_product_attention, []

    def answer(*args: Any, implementation: str, **others: Any) -> Any:
        asked.append(implementation)
        return ask(*args, implementation="xla", **others)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    segments = np.array([[1] * 20 + [2] * 12, [1] * 32], np.int32)
    compute = replace(SIMPLE, dtype="bfloat16", matmul="bfloat16")
    arrays, scoring = long_heads(32), Scoring(Mask(segments, segments, **options))
    found, expected = (
        jax.jit(lambda *a, name=name: KERNELS[name](*a, scoring, compute).astype(np.float32))(*arrays)
        for name in ("cudnn", "plain")
    )
    assert asked == ["cudnn"]
    close(found, expected, 0.05)


# ---------------------------------------------------------------- long inputs


def test_memory_does_not_grow_with_the_square_of_the_length() -> None:
    """The compiled forward and backward pass of a small Llama at 65,536 tokens needs less than 4 GB (all logits of one
    layer would be 69), and twice the memory of 32,768."""

    def gigabytes(T: int) -> float:
        cfg = replace(LLAMA, width=64, context=T, ffn=FeedForward(mlp=172, activation="silu", gated=True))
        model = Transformer(cfg, Compute("float32", "float32", "flash", block=512, remat="full", unroll=1))
        batch = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
        shaped = {name: jax.ShapeDtypeStruct((1, T), dtype) for name, dtype in batch.items()}
        loss = lambda p, b: Pretrain().build(model).loss(p, (), b, None)[0]  # noqa: E731
        memory = jax.jit(jax.value_and_grad(loss)).lower(model.shapes(), shaped).compile().memory_analysis()
        return memory.temp_size_in_bytes / 1e9

    half, whole = gigabytes(32768), gigabytes(65536)
    assert whole < 4 and whole == pytest.approx(2 * half, rel=0.2)


SHAPES = {
    "plain": Scoring(Mask()),
    "a window": Scoring(Mask(window=70)),
    "softcap and sinks": Scoring(Mask(), softcap=2.0, sinks=np.array([0.5, -1.0, 2.0, 0.0], np.float32)),
    "a bias by distance": Scoring(Mask(), np.random.default_rng(4).standard_normal((3, 4, 384 + 1)).astype(np.float32)),
}


@pytest.mark.parametrize("scoring", SHAPES.values(), ids=SHAPES)
def test_a_cache_is_read_block_by_block_as_at_once(scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens each of rows behind 300, 127 and no others; and a row's bits are its own."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 2, 4, 8), *[(3, 2, 384, 8)] * 2))

    def read(offset: Any) -> jax.Array:
        return cached(q, k, v, replace(scoring, mask=replace(scoring.mask, offset=offset)), SIMPLE)

    some, fewer = np.array([300, 127, 0]), np.array([9, 127, 0])
    by_blocks = jax.jit(read)
    by_block, shorter = by_blocks(some), by_blocks(fewer)
    np.testing.assert_array_equal(by_block[1:], shorter[1:])
    monkeypatch.setattr(lm.model.scoring, "CACHE_BLOCK", 1000)
    close(by_block, jax.jit(partial(read))(some), 1e-5)
