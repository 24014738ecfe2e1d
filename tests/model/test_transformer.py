"""The transformer: what the papers say, the same however it is computed, and nothing leaks from where it must not."""

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

from lm.model.attention import Attention
from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.inputs import Inputs
from lm.model.parts import FeedForward, LayerNorm
from lm.model.positions import Learned, Positions, Rotary
from lm.model.scaling import Dynamic
from lm.model.transformer import Transformer
from tests.model.reference import (
    GEMMA2,
    GPT,
    LATENT,
    LLAMA,
    MODELS,
    SIMPLE,
    SINUSOIDAL,
    close,
    extend,
    forward,
    lively,
    mean_loss,
    run,
    tokens,
    trees_close,
)

every_model = pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS.keys())


@pytest.mark.parametrize("cfg", [GPT, LLAMA], ids=["gpt", "llama"])
def test_logits_are_the_papers(cfg: ModelConfig) -> None:
    params, ids = lively(cfg), tokens(cfg, 2, 11)
    logits = run(Transformer(cfg, SIMPLE), params, ids)
    assert logits.dtype == jnp.float32
    close(logits, np.stack([forward(cfg, params, row) for row in ids]))


# ---------------------------------------------------------------- however it is computed


# everything at once: grouped queries, biases, gates, rotary positions, dropout's seats
MIXED = replace(
    LLAMA,
    attention=Attention(heads=4, head_dim=4, kv_heads=2, bias=True),
    ffn=FeedForward(mlp=20, activation="gelu", gated=True, bias=True),
    norm=LayerNorm(),
    tied=True,
)
SPARSE = replace(LATENT, layers=2, first_layers=())
VARIANTS = {
    "two layers a turn": replace(SIMPLE, unroll=2, attention="native", remat="dots"),
    "layers again": replace(SIMPLE, remat="full", attention="blocked", block=4),
    "flash": replace(SIMPLE, attention="flash", block=4),  # 11 = 4 + 4 + 3
    "native": replace(SIMPLE, attention="native", remat="dots"),
    "all of it": Compute("float32", "float32", "blocked", block=5, flat="yes", unroll=0, remat="full"),
}


def packed_batch(cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Rows of 11: two documents and padding; one document."""
    segments = np.array([[1] * 5 + [2] * 5 + [0], [1] * 11], np.int32)
    positions = np.array([[*range(5), *range(5), 0], range(11)], np.int32)
    return {
        "tokens": tokens(cfg, 2, 11),
        "targets": tokens(cfg, 2, 11, seed=1),
        "segments": segments,
        "positions": positions,
    }


def value_and_gradients(cfg: ModelConfig, compute: Compute) -> Any:
    model = Transformer(cfg, compute)
    return jax.jit(jax.value_and_grad(partial(mean_loss, model)))(lively(cfg), packed_batch(cfg))


@cache
def simple(cfg: ModelConfig) -> Any:
    return value_and_gradients(cfg, SIMPLE)


@pytest.mark.parametrize(
    ("cfg", "name"),
    [
        *((MIXED, name) for name in ("two layers a turn", "layers again", "all of it")),
        (replace(GPT, layers=2), "all of it"),
        (GEMMA2, "all of it"),
        (GEMMA2, "flash"),
        *((SPARSE, name) for name in ("all of it", "flash", "native")),
    ],
)
def test_however_it_is_computed_it_is_the_same(cfg: ModelConfig, name: str) -> None:
    (loss, gradients), (expected_loss, expected) = value_and_gradients(cfg, VARIANTS[name]), simple(cfg)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    trees_close(gradients, expected, 1e-4)


def test_no_layer_sums_what_those_above_it_summed() -> None:
    """Layers in a row, on a CPU: what a fused kernel reads does not grow with the depth, though every layer adds to the
    gradient of the residual stream."""

    def reads(layers: int) -> int:
        cfg = replace(GPT, layers=layers)
        model = Transformer(cfg, replace(SIMPLE, unroll=0))
        step = jax.jit(jax.grad(partial(mean_loss, model)))
        program = step.lower(lively(cfg), packed_batch(cfg)).compile().as_text()
        return max(of.count("%") for of in re.findall(r" fusion\(([^)]*)\)", program))

    assert reads(9) <= reads(3) + 6  # a stack's gradients are one array of a layer's each


@pytest.mark.parametrize("flat", ["yes", "no"])
def test_bfloat16_is_close_to_float32(flat: str) -> None:
    params, ids = lively(LLAMA), tokens(LLAMA, 2, 11)
    exact = run(Transformer(LLAMA, SIMPLE), params, ids)
    for dtype in ("float32", "bfloat16"):
        rounded = run(Transformer(LLAMA, replace(SIMPLE, dtype=dtype, matmul="bfloat16", flat=flat)), params, ids)
        assert rounded.dtype == jnp.float32
        close(rounded, exact, 0.1)
        assert np.abs(rounded - exact).max() > 1e-4  # it was computed in bfloat16


# ---------------------------------------------------------------- what may reach what


@every_model
def test_a_later_token_changes_no_earlier_logit(cfg: ModelConfig) -> None:
    model, params, ids = Transformer(cfg, SIMPLE), lively(cfg), tokens(cfg, 2, 11)
    before = run(model, params, ids)

    @settings(max_examples=20, deadline=None)
    @given(at=st.integers(0, 10), token=st.integers(0, cfg.vocab - 1))
    def change(at: int, token: int) -> None:
        changed = ids.copy()
        changed[0, at] = token
        after = run(model, params, changed)
        np.testing.assert_array_equal(after[0, :at], before[0, :at])
        np.testing.assert_array_equal(after[1], before[1])
        assert token == ids[0, at] or (after[0, at:] != before[0, at:]).any(-1).all()

    change()


@every_model
def test_packed_is_unpacked(cfg: ModelConfig) -> None:
    """Two documents in a row give the logits of each alone, whatever is in the padding."""
    model, params, batch = Transformer(cfg, SIMPLE), lively(cfg), packed_batch(cfg)
    ids, other = batch["tokens"], tokens(cfg, 5, seed=2)
    together = run(model, params, ids, positions=batch["positions"], segments=batch["segments"])
    second = run(model, params, np.stack([np.concatenate([ids[0, 5:], other]), ids[1]]))  # what is behind is not seen
    close(together[0, :5], run(model, params, ids)[0, :5])
    close(together[0, 5:10], second[0, :5])
    close(together[1], second[1])
    assert np.isfinite(together).all()


@pytest.mark.parametrize("shift", [1, 13])
def test_only_distances_matter_to_rotary_positions(shift: int) -> None:
    here = np.arange(11, dtype=np.int32)[None]

    def moved(cfg: ModelConfig, by: int) -> np.ndarray:
        return run(Transformer(cfg, SIMPLE), lively(cfg), tokens(LLAMA, 1, 11) % cfg.vocab, positions=here + by)

    close(moved(LLAMA, shift), moved(LLAMA, 0), 1e-4)
    for cfg in (GPT, SINUSOIDAL):
        assert np.abs(moved(cfg, shift) - moved(cfg, 0)).max() > 0.01


def test_without_positions_the_order_of_the_past_is_not_seen() -> None:
    """Of one layer: its last query sees a set."""
    cfg = replace(LLAMA, positions=Positions(), layers=1)
    model, params, ids = Transformer(cfg, SIMPLE), lively(cfg), tokens(cfg, 1, 11)
    close(run(model, params, np.concatenate([ids[:, 9::-1], ids[:, 10:]], 1))[:, -1], run(model, params, ids)[:, -1])


# ---------------------------------------------------------------- with a cache


@partial(jax.jit, static_argnums=0)
def _prefill(model: Transformer, params: Any, inputs: Inputs) -> Any:
    x, cache, *_ = model.hidden(params, inputs, model.empty_cache(inputs.tokens.shape[0], 15))
    return model.logits(params, x), cache


def prefill(model: Transformer, params: Any, ids: np.ndarray, lengths: Any) -> tuple[np.ndarray, Any]:
    """The logits of the first tokens, so many of each row, and a cache with them."""
    segments = (np.arange(ids.shape[1]) < np.array(lengths)[:, None]).astype(np.int32)
    logits, cache = _prefill(model, params, Inputs(ids, segments=segments))
    return np.asarray(logits), cache


SOME = ("llama", "gemma 2", "latent", "gated deltanet")


@pytest.mark.parametrize(
    "chunks", [(1, 3, 1), *(pytest.param(c, marks=pytest.mark.slow) for c in ((3, 2), (1, 4)))], ids=str
)
@pytest.mark.parametrize(
    ("name", "compute"),
    [
        *((name, "simple") for name in MODELS),
        *(pytest.param(name, "all of it", marks=() if name in SOME else pytest.mark.slow) for name in MODELS),
    ],
)
def test_cached_is_full(name: str, compute: str, chunks: tuple[int, ...]) -> None:
    cfg = MODELS[name]
    model, params, ids = Transformer(cfg, VARIANTS.get(compute, SIMPLE)), lively(cfg), tokens(cfg, 2, 11)
    logits, kept = prefill(model, params, ids[:, :6], [6, 6])
    parts, start = [logits], 6
    for chunk in chunks:
        logits, kept = extend(model, params, kept, Inputs(ids[:, start : start + chunk]))
        parts.append(logits)
        start += chunk
    close(np.concatenate(parts, axis=1), run(Transformer(cfg, SIMPLE), params, ids), 5e-5)  # on some processors 3.3e-5


@every_model
@pytest.mark.parametrize("compute", [SIMPLE, VARIANTS["all of it"]], ids=["simple", "all of it"])
def test_rows_of_a_cache_are_at_offsets_of_their_own(cfg: ModelConfig, compute: Compute) -> None:
    """Prompts of 6 and 3 tokens in one batch, then five tokens more of each."""
    model, params, ids = Transformer(cfg, compute), lively(cfg), tokens(cfg, 2, 11)
    logits, kept = prefill(model, params, ids[:, :6], [6, 3])
    parts = [[logits[0, :6]], [logits[1, :3]]]
    for t in range(5):
        next_ids = np.stack([ids[0, 6 + t : 7 + t], ids[1, 3 + t : 4 + t]])
        logits, kept = extend(model, params, kept, Inputs(next_ids))
        for row, part in enumerate(parts):
            part.append(logits[row])
    assert kept.length.tolist() == [11, 8]
    whole = run(Transformer(cfg, SIMPLE), params, ids)  # no logit depends on what is behind it
    close(np.concatenate(parts[0]), whole[0], 3e-5)
    close(np.concatenate(parts[1]), whole[1, :8], 3e-5)


def test_padding_does_not_lengthen_a_text() -> None:
    """The angles of Dynamic follow from the last position, of a prompt of 6 tokens in a row of 11."""
    cfg = replace(LLAMA, positions=Rotary(100.0, Dynamic(2.0, original_context=8)))
    model, params, ids = Transformer(cfg, SIMPLE), lively(LLAMA), tokens(LLAMA, 1, 11)
    segments = (np.arange(11) < 6).astype(np.int32)[None]
    expected = run(model, params, ids[:, :6])
    close(run(model, params, ids, segments=segments)[:, :6], expected)
    close(prefill(model, params, ids, [6])[0][:, :6], expected)
    assert np.abs(run(model, params, ids, segments=np.ones_like(segments))[:, :6] - expected).max() > 1e-3


def test_a_windowed_layer_caches_no_more_than_its_window() -> None:
    for compute, stacked in ((SIMPLE, (1,)), (VARIANTS["all of it"], ())):
        layers = Transformer(MODELS["gemma 3"], compute).empty_cache(2, 15).layers
        shapes = {name: jax.tree.leaves(cache)[0].shape for name, cache in layers.items()}
        assert [shape[-2] for shape in shapes.values()] == [3, 3, 15]
        assert shapes["2"] == (*stacked, 2, 2, 15, 6)
    alibi = replace(MODELS["alibi"], pattern=(LayerKind(window=3),))
    assert jax.tree.leaves(Transformer(alibi, SIMPLE).empty_cache(2, 15))[0].shape[-2] == 15


# ---------------------------------------------------------------- parameters


@every_model
def test_every_parameter_has_its_axes(cfg: ModelConfig) -> None:
    model = Transformer(cfg, SIMPLE)
    shapes, axes = model.shapes(), model.axes()
    jax.tree.map(lambda s, a: None if len(s.shape) == len(a) else pytest.fail(f"{s} {a}"), shapes, axes)
    assert all(a[0] == "layers" for slot in axes["layers"].values() for a in slot.values())
    assert all(s.dtype == jnp.float32 for s in jax.tree.leaves(shapes))


@cache
def fresh(cfg: ModelConfig) -> Any:
    return jax.device_get(jax.jit(Transformer(cfg, SIMPLE).init)(jax.random.key(3)))


def test_models_that_share_a_part_start_it_alike() -> None:
    base, other = fresh(LLAMA), fresh(replace(LLAMA, tied=True, layers=4))
    assert "kernel" not in other["head"]
    np.testing.assert_array_equal(other["stem"]["tokens"], base["stem"]["tokens"])
    for name in ("query", "key", "value", "gate", "up"):
        np.testing.assert_array_equal(other["layers"]["0"][name][:3], base["layers"]["0"][name])


def test_what_a_part_has_beside_it_changes_no_first_value() -> None:
    base = fresh(LLAMA)
    other = fresh(replace(LLAMA, norm=LayerNorm(), attention=replace(LLAMA.attention, bias=True), positions=Learned()))
    assert set(base["layers"]["0"]) < set(other["layers"]["0"])
    for part in ("stem", "head"):
        jax.tree.map(np.testing.assert_array_equal, base[part], {k: other[part][k] for k in base[part]})
    for name, value in base["layers"]["0"].items():
        np.testing.assert_array_equal(value, other["layers"]["0"][name])


def test_a_fresh_model_knows_nothing_but_keeps_its_scale() -> None:
    """The first loss is near log V, and no layer is a copy of another, nor a matrix."""
    params = fresh(LLAMA)
    logits = run(Transformer(LLAMA, SIMPLE), params, tokens(LLAMA, 4, 11))
    assert 0.3 < float(logits.std()) < 3
    layers = params["layers"]["0"]
    query = layers["query"]
    assert not np.allclose(query[0], query[1]) and not np.allclose(layers["gate"], layers["up"])
    assert float(query.std()) == pytest.approx(LLAMA.width**-0.5, rel=0.1)


# ---------------------------------------------------------------- dropout


def test_dropout_needs_a_key() -> None:
    cfg = replace(LLAMA, dropout=0.2)
    params, ids = lively(LLAMA), tokens(LLAMA, 2, 11)
    exact = run(Transformer(LLAMA, SIMPLE), params, ids)
    np.testing.assert_array_equal(run(Transformer(cfg, SIMPLE), params, ids), exact)
    first, again, other = (run(Transformer(cfg, SIMPLE), params, ids, key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    for dropped in (first, other):
        assert np.abs(dropped - exact).max() > 0.01
    assert np.abs(first - other).max() > 0.01
    np.testing.assert_array_equal(run(Transformer(LLAMA, SIMPLE), params, ids, key=jax.random.key(1)), exact)


def test_dropout_of_a_layer_does_not_depend_on_the_pattern() -> None:
    """Two slots of one kind are one."""
    one = replace(LLAMA, layers=4, dropout=0.2)
    params, ids, key = jax.device_get(lively(one)), tokens(LLAMA, 2, 11), jax.random.key(1)
    slots = {str(p): {name: a[p::2] for name, a in params["layers"]["0"].items()} for p in range(2)}
    two = Transformer(replace(one, pattern=one.pattern * 2), SIMPLE)
    close(run(two, {**params, "layers": slots}, ids, key=key), run(Transformer(one, SIMPLE), params, ids, key=key))


def test_dropout_is_the_same_however_layers_are_computed() -> None:
    cfg, params, ids = replace(LLAMA, dropout=0.2), lively(LLAMA), tokens(LLAMA, 2, 11)
    one, other = (run(Transformer(cfg, c), params, ids, key=jax.random.key(1)) for c in (SIMPLE, VARIANTS["all of it"]))
    close(one, other)
