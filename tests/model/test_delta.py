"""Gated DeltaNet: the paper's recurrence, by chunks, behind a cache, over a mesh, counted and planned."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax._src.ad_checkpoint import saved_residuals

from certificates.mixers import MIXERS, MixerCase
from certificates.ours import LIMIT, mixer_outputs
from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.delta import GatedDeltaNet
from lm.model.delta_rule import Tokens, chunked, recurrent
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.train.optim import AdamW
from tests.model.reference import (
    DELTA,
    LLAMA,
    SIMPLE,
    attention,
    close,
    extend,
    lively,
    mean_loss,
    rms_norm,
    run,
    silu,
    tokens,
    trees_close,
)

MIXER: Any = DELTA.pattern[0].mixer


PAIR = replace(DELTA, layers=2, pattern=(DELTA.pattern[0], LayerKind()))


def alone(**changes: Any) -> ModelConfig:
    """One layer of the mixer, changed."""
    return replace(DELTA, layers=1, pattern=(LayerKind(mixer=replace(MIXER, **changes)),))


# ---------------------------------------------------------------- the rule


def by_token(x: Tokens, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2412.06464, equation 10, with S transposed: S_t = a_t (I - b_t k_t k_t^T) S_t-1 + b_t k_t v_t^T, read as
    q_t S_t; a document begins with an empty state."""
    q, k, v, g, beta, document = (np.asarray(a, np.float64) for a in x)
    out, state = np.zeros(v.shape), state.copy()  # which a program that was only dispatched may still read
    for row, head in np.ndindex(*q.shape[:2]):
        S, before = state[row, head], 0.0
        for t in range(q.shape[2]):
            key, b = k[row, head, t], beta[row, head, t]
            S = S if document[row, 0, t] == before else np.zeros_like(S)
            S = np.exp(g[row, head, t]) * (np.eye(len(key)) - b * np.outer(key, key)) @ S
            S = S + b * np.outer(key, v[row, head, t])
            out[row, head, t], before = q[row, head, t] @ S, document[row, 0, t]
        state[row, head] = S
    return out, state


def some_tokens(T: int, alike: float = 0.0, forget: float = 1.0) -> tuple[Tokens, np.ndarray]:
    """Random ones of two rows, of three and of two documents, and a state; keys nearly `alike`."""
    rng = np.random.default_rng(T)
    q, k = rng.standard_normal((2, 2, 3, T, 5))
    k = (1 - alike) * k + alike * np.ones(5)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, state = rng.standard_normal((2, 3, T, 4)), rng.standard_normal((2, 3, 5, 4))
    g, beta = -forget * rng.exponential(0.3, (2, 3, T)), rng.uniform(0, 1, (2, 3, T)) ** (1 - alike)
    document = (np.arange(T) >= np.array([[T // 3], [T]])).astype(int) + (np.arange(T) >= [[T // 3 + 1], [T // 2]])
    floats: Any = (a.astype(np.float32) for a in (q, k, v, g, beta))
    return Tokens(*floats, document=document[:, None]), state.astype(np.float32)


by_chunk = jax.jit(chunked, static_argnums=2)
one_by_one = jax.jit(recurrent)


@pytest.mark.parametrize(("T", "chunk"), [(2, 1), (2, 64), (16, 2), (16, 16), (37, 8), (37, 64)])
def test_chunks_are_the_recurrence(T: int, chunk: int) -> None:
    x, state = some_tokens(T)
    for got, expected in zip(by_chunk(x, state, chunk), by_token(x, state), strict=True):
        close(got, expected)


def test_one_token_after_the_other_is_the_recurrence() -> None:
    x, state = some_tokens(9)
    x = x._replace(document=np.zeros_like(x.document))
    kept, parts = state, []
    for t in range(9):
        read, kept = one_by_one(Tokens(*(a[:, :, t : t + 1] for a in x)), kept)
        parts.append(read)
    for got, expected in zip((np.concatenate(parts, 2), kept), by_token(x, state), strict=True):
        close(got, expected)


def test_keys_that_are_alike_do_not_break_a_chunk() -> None:
    """A text of one word, of which nothing is forgotten: the triangular matrices are at their worst."""
    x, state = some_tokens(128, alike=1.0, forget=0.0)
    for got, expected in zip(by_chunk(x, state, 64), by_token(x, state), strict=True):
        close(got, expected, 1e-4)


def test_gradients_do_not_depend_on_chunks() -> None:
    x, state = some_tokens(37)

    def loss(floats: Any, state: jax.Array, chunk: int) -> jax.Array:
        read, state = chunked(Tokens(*floats, x.document), state, chunk)
        return jnp.sin(read).sum() + jnp.cos(state).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    one, *others = (gradient(x[:5], state, chunk) for chunk in (1, 8, 64))
    for other in others:
        trees_close(other, one, 2e-5)


# ---------------------------------------------------------------- the layer


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Channels of x [T, ...], each a sum over its last tokens, then silu."""
    W, y = len(kernel), np.zeros_like(x)
    for t in range(len(x)):
        for i in range(min(W, t + 1)):
            y[t] += kernel[W - 1 - i] * x[t - i]
    return silu(y)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def delta_mixer(x: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """The gated DeltaNet block (2412.06464, section 3.4) of one sequence [T, D], value head by value head."""
    T, N, K = len(x), p["value"].shape[1], p["key"].shape[1]
    q, k, v = (convolved(np.einsum("td,dnh->tnh", x, p[n]), p[f"{n}_conv"]) for n in ("query", "key", "value"))
    y = np.zeros_like(x)
    for n in range(N):
        own_q, own_k = (
            a[:, n // (N // K)] / np.sqrt((a[:, n // (N // K)] ** 2).sum(-1, keepdims=True) + 1e-6) for a in (q, k)
        )
        g = -np.exp(p["A_log"][n]) * np.log1p(np.exp(x @ p["decay"][:, n] + p["dt_bias"][n]))
        beta = 1 / (1 + np.exp(-x @ p["beta"][:, n]))
        one = Tokens(*(a[None, None] for a in (own_q, own_k, v[:, n], g, beta, np.zeros(T))))
        read, _ = by_token(one, np.zeros((1, 1, q.shape[-1], v.shape[-1])))
        gated = rms_norm(read[0, 0] * q.shape[-1] ** -0.5, p, "value_norm", 1e-6) * silu(x @ p["out_gate"][:, n])
        y += gated @ p["out"][n]
    return y


def forward(cfg: ModelConfig, params: Any, ids: np.ndarray) -> np.ndarray:
    """Logits [T, V] of a Llama with layers of both kinds."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = params["stem"]["tokens"][ids]
    for i in range(cfg.layers):
        p = {name: stack[i // 2] for name, stack in params["layers"][str(i % 2)].items()}
        h = rms_norm(x, p, "attention_norm", 1e-5)
        x = x + (delta_mixer(h, p) if "A_log" in p else attention(h, p, theta=100.0))
        h = rms_norm(x, p, "ffn_norm", 1e-5)
        x = x + (silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
    return rms_norm(x, params["head"], "norm", 1e-5) @ params["head"]["kernel"]


def test_logits_are_the_paper_s() -> None:
    params, ids = lively(DELTA), tokens(DELTA, 2, 11)
    logits = run(Transformer(DELTA, SIMPLE), params, ids)
    close(logits, np.stack([forward(DELTA, params, row) for row in ids]), 2e-5)


FEW: dict[str, Any] = {"full": (slice(None), slice(12, None, 30)), "next": (), "state": (0, slice(None), 0)}


@pytest.mark.parametrize("case", MIXERS, ids=lambda case: case.name)
def test_numbers_are_those_of_transformers(case: MixerCase) -> None:
    """Recorded by certificates/reference.py."""
    known = json.loads((Path(__file__).parent / "recorded.json").read_text())[case.name]
    for name, given in mixer_outputs(case).items():
        std, wanted = known[name]
        assert np.abs(given[FEW[name]] - np.array(wanted)).max() <= LIMIT * std + 1e-7  # as many digits are recorded


def batch(T: int = 24) -> dict[str, np.ndarray]:
    segments = np.array([[1] * 9 + [2] * 12 + [0] * 3, [1] * 24], np.int32)
    positions = np.array([[*range(9), *range(12), 0, 0, 0], range(24)], np.int32)
    ids, targets = tokens(DELTA, 2, T), tokens(DELTA, 2, T, seed=1)
    return {"tokens": ids, "targets": targets, "segments": segments, "positions": positions}


def gradients(cfg: ModelConfig, compute: Compute = SIMPLE) -> Any:
    return jax.jit(jax.value_and_grad(partial(mean_loss, Transformer(cfg, compute))))(lively(cfg), batch())


@cache
def simple() -> Any:
    return jax.device_get(gradients(alone()))


@pytest.mark.parametrize(
    ("chunk", "compute"),
    [
        (64, Compute("float32", "float32", "plain", flat="yes", unroll=0, remat="full")),
        (1, replace(SIMPLE, remat="names", keep=("attention", "query"))),
    ],
    ids=["longer", "of one token"],
)
def test_a_model_does_not_depend_on_chunks_or_how_it_is_computed(chunk: int, compute: Compute) -> None:
    got, expected = gradients(alone(chunk=chunk), compute.resolve("cpu")), simple()
    assert all(np.isfinite(a).all() and np.abs(a).max() > 0 for a in jax.tree.leaves(expected))
    trees_close(got, expected, 1e-4)


def saved(compute: Compute) -> set[tuple[int, ...]]:
    """The shapes of what a loss keeps of the layer's activations for its gradient."""
    model, T = Transformer(alone(), compute), 24
    loss = lambda p: (model(p, tokens(DELTA, 2, T)) ** 2).mean()  # noqa: E731
    kept = (value.shape for value, source in saved_residuals(loss, model.shapes()) if "argument" not in source)
    return {shape[1:] for shape in kept if shape[:1] == (1,) and shape[2:3] != (16,)} - {(2, T, 16)}


def test_the_backward_pass_keeps_projections_and_no_states() -> None:
    query, value, rate = (2, 24, 2, 6), (2, 24, 4, 3), (2, 24, 4)
    assert saved(replace(SIMPLE, remat="names", keep=("value",))) == {value, rate}
    assert saved(replace(SIMPLE, remat="names", keep=("query",))) == {query}
    assert saved(replace(SIMPLE, remat="names", keep=("attention",))) == {value}
    most = max(np.prod(shape) for shape in saved(SIMPLE))
    assert most <= 2 * 24 * 20 and {query, value, rate} <= saved(SIMPLE)


def test_bfloat16_is_close_to_float32() -> None:
    """And the state stays float32."""
    cfg, half = alone(), replace(SIMPLE, dtype="bfloat16", matmul="bfloat16")
    exact, rounded = (run(Transformer(cfg, c), lively(cfg), tokens(cfg, 2, 24)) for c in (SIMPLE, half))
    # the norm of what is read makes much of the rounding where little was: the mean, not the largest
    assert 1e-4 < np.abs(rounded - exact).mean() / exact.std() < 0.02
    kept = Transformer(cfg, half).empty_cache(2, 8).layers["0"]
    assert {a.dtype.name for a in kept.inputs} == {"bfloat16"} and kept.state.dtype == jnp.float32


def test_padding_between_and_before_documents_is_not_read() -> None:
    model, cfg = Transformer(alone(), SIMPLE), alone()
    ids, params = tokens(cfg, 1, 11), lively(cfg)
    segments = np.array([[0] * 2 + [3] * 4 + [0] * 2 + [1] * 3], np.int32)
    together = run(model, params, ids, segments=segments)[0]
    first, second = run(model, params, np.concatenate([np.roll(ids, -2), np.roll(ids, -8)]))  # each, and more behind it
    close(together[2:6], first[:4])
    close(together[8:], second[:3])


# ---------------------------------------------------------------- the cache


def state_of(cache: Any, row: int) -> Any:
    """What the first layers keep of a row."""
    kept = jax.device_get(cache.layers["0"])
    stacked = not isinstance(kept, list)
    return jax.tree.map(lambda a: a[0, row] if stacked else a[row], kept if stacked else kept[0])


@pytest.mark.parametrize("unroll", [0, 1])
def test_padding_leaves_a_row_as_it_is(unroll: int) -> None:
    """Prompts of 5 and 1 tokens; then 3 and 2 more, then none and 4, then one each: in rows of 5, and of one."""
    model, params = Transformer(PAIR, replace(SIMPLE, unroll=unroll)), lively(PAIR)
    ids, at = tokens(PAIR, 2, 11), np.zeros(2, int)
    cache: Any = model.empty_cache(2, 12)
    parts: list[list[np.ndarray]] = [[], []]
    for lengths in ((5, 1), (3, 2), (0, 4), (1, 1)):
        T = 5 if max(lengths) > 1 else 1
        some = np.stack([np.pad(ids[r, at[r] : at[r] + n], (0, T - n)) for r, n in enumerate(lengths)])
        segments = (np.arange(T) < np.array(lengths)[:, None]).astype(np.int32)
        before = cache
        logits, cache = extend(model, params, cache, Inputs(some, segments=segments))
        for r, n in enumerate(lengths):
            parts[r].append(logits[r, :n])
            if n == 0:
                jax.tree.map(np.testing.assert_array_equal, state_of(cache, r), state_of(before, r))
        at += lengths
    assert cache.length.tolist() == at.tolist() == [9, 8]
    whole = run(Transformer(PAIR, SIMPLE), params, ids)  # no logit depends on what is behind it
    for r in range(2):
        close(np.concatenate(parts[r]), whole[r, : at[r]], 3e-5)


def test_a_row_without_tokens_is_empty_whatever_the_cache_has() -> None:
    """A row of the cache that is given to another text."""
    model, params, ids = Transformer(PAIR, SIMPLE), lively(PAIR), tokens(PAIR, 2, 11)
    _, cache = extend(model, params, model.empty_cache(2, 12), Inputs(ids[:, :4]))
    cache = replace(cache, length=np.array([0, 4], np.int32))
    logits, _ = extend(model, params, cache, Inputs(ids[:, 4:8]))
    another, same = run(model, params, np.stack([np.roll(ids[0], -4), ids[1]]))
    close(logits[0], another[:4], 3e-5)
    close(logits[1], same[4:8], 3e-5)


def test_a_cache_is_as_large_for_any_length() -> None:
    model = Transformer(alone(), SIMPLE)
    made = [jax.eval_shape(partial(model.empty_cache, 2, length)).layers for length in (8, 8000)]
    shapes = [[a.shape for a in jax.tree.leaves(layers)] for layers in made]
    assert shapes[0] == shapes[1] == [(1, 2, 4, 6, 3), (1, 2, 2, 2, 6), (1, 2, 2, 2, 6), (1, 2, 2, 4, 3)]


# ---------------------------------------------------------------- training


def test_it_learns_to_copy() -> None:
    """The second half of a row is the first: a state of one layer remembers it."""
    cfg = replace(LLAMA, vocab=8, pattern=(LayerKind(mixer=GatedDeltaNet(2, 2, 16, 16, chunk=8)),), layers=1)
    model = Transformer(cfg, SIMPLE)
    chain = AdamW(learning_rate=1e-2, weight_decay=0.0).build(200, model.axes())
    half = np.random.default_rng(0).integers(0, 8, (32, 6))
    ids = np.concatenate([half, half], 1).astype(np.int32)

    def loss(params: Any) -> jax.Array:
        logits = jax.nn.log_softmax(model(params, ids[:, :-1])[:, 5:])
        return -jnp.take_along_axis(logits, ids[:, 6:, None], -1).mean()

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        now, grads = jax.value_and_grad(loss)(params)
        updates, state = chain.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), now

    @jax.jit
    def learn(params: Any) -> jax.Array:
        return jax.lax.scan(step, (params, chain.init(params)), None, length=60)[1]

    losses = np.asarray(learn(lively(cfg)))
    assert losses[0] > 1.8 and losses[-1] < 0.5, losses


def test_a_fresh_state_lasts() -> None:
    """Decays of a fresh model are of between one token and a thousand."""
    cfg = alone(value_heads=64)
    p = jax.device_get(jax.jit(Transformer(cfg, SIMPLE).init)(jax.random.key(0))["layers"]["0"])
    times = 1 / (np.exp(p["A_log"]) * np.log1p(np.exp(p["dt_bias"])))
    assert 0.5 < times.min() < 3 and 100 < times.max() < 1001
    assert p["query_conv"].std() == pytest.approx(3**-0.5, rel=0.3)
