"""Attention to a row's own tokens and the encoder's output at once (T5Gemma 2), an encoder that reads by the decoder's
embedding, and windows of another length behind the query than before it."""

from dataclasses import fields, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model import count
from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig
from lm.model.inputs import Inputs
from lm.model.merged import MergedAttention
from lm.model.output import NoOutput
from lm.model.parts import RMSNorm
from lm.model.positions import Rotary
from lm.model.scoring import Mask, Span
from lm.model.taps import CROSS, Watch
from lm.model.transformer import Transformer
from lm.value import build, fingerprint, plain
from tests.model.reference import LLAMA, SIMPLE, extend, lively, run, tokens

NORM = RMSNorm(1e-6)
LOOPED = replace(SIMPLE, unroll=0)
OWN = Attention(4, 6, 2, qk_norm=NORM, softcap=5.0)
MERGED = MergedAttention(**{f.name: getattr(OWN, f.name) for f in fields(OWN)})
SIDES = LayerKind(2, window_after=3, positions=Rotary(50.0))
ENCODER = replace(
    LLAMA, layers=2, attention=OWN, pattern=(SIDES, LayerKind()), causal=False, output=NoOutput(), tied=True
)
BOTH = replace(
    LLAMA, layers=2, attention=MERGED, encoder=ENCODER, one_embedding=True, pattern=(LayerKind(4), LayerKind())
)
ONE = replace(BOTH, layers=1, pattern=(LayerKind(4),))
SEGMENTS = np.array([[1] * 7, [1] * 4 + [0] * 3])


def given(cfg: ModelConfig, T: int) -> Inputs:
    """A decoder's tokens [2, T] and an encoder's, of which the second row has fewer."""
    encoder = Inputs(tokens(cfg, 2, 7)[:, ::-1], segments=jnp.asarray(SEGMENTS))
    return Inputs(tokens(cfg, 2, T), encoder=encoder)


@partial(jax.jit, static_argnums=0)
def hidden(model: Transformer, params: Any, inputs: Any) -> Any:
    return model.hidden(params, inputs)


@cache
def by_formula() -> tuple[Any, Inputs, np.ndarray, np.ndarray]:
    """Of a model of one layer without a feed-forward: parameters, inputs, the residual stream after it in numpy, and
    the pattern over the row's own tokens, then the encoder's."""
    params, inputs = lively(ONE), given(ONE, 9)
    slot = params["layers"]["0"]
    params = {**params, "layers": {"0": {**slot, "down": 0 * slot["down"]}}}
    seen = np.asarray(jax.jit(Transformer(ONE, SIMPLE).encode)(params, inputs.encoder), np.float64)
    own = {name: np.asarray(a[0], np.float64) for name, a in slot.items()}

    def normed(a: np.ndarray, name: str, eps: float = 1e-6) -> np.ndarray:
        return a / np.sqrt((a * a).mean(-1, keepdims=True) + eps) * own[f"{name}_norm_scale"]

    @jax.jit
    def rotate(a: jax.Array) -> jax.Array:
        return ONE.positions.rotate(a, ONE.positions.table(jnp.arange(9)[None], 6), SIMPLE)

    def turned(a: np.ndarray) -> np.ndarray:
        return np.asarray(rotate(a.astype(np.float32)), np.float64)

    x = np.asarray(params["stem"]["tokens"], np.float64)[np.asarray(inputs.tokens)]
    h = normed(x, "attention", ONE.norm.eps)  # type: ignore[attr-defined]
    q, k, v = (np.einsum("btd,dnh->btnh", h, own[name]) for name in ("query", "key", "value"))
    k2, v2 = (np.einsum("bsd,dnh->bsnh", seen, own[name]) for name in ("key", "value"))
    q, k, k2 = turned(normed(q, "query")), turned(normed(k, "key")), normed(k2, "key")
    y, pattern = np.zeros((2, 9, 4, 6)), np.zeros((2, 4, 9, 9 + 7))
    for b, t, n in np.ndindex(2, 9, 4):
        near, theirs = list(range(max(0, t - 3), t + 1)), np.flatnonzero(SEGMENTS[b])
        keys = np.concatenate([k[b, near, n // 2], k2[b, theirs, n // 2]])
        values = np.concatenate([v[b, near, n // 2], v2[b, theirs, n // 2]])
        weights = np.exp(5 * np.tanh(keys @ q[b, t, n] * 6**-0.5 / 5))
        pattern[b, n, t, [*near, *(9 + theirs)]] = weights / weights.sum()
        y[b, t, n] = weights @ values / weights.sum()
    return params, inputs, x + np.einsum("btnh,nhd->btd", y, own["out"]), pattern


def test_one_softmax_is_over_both() -> None:
    """Keys of the row's own tokens are turned and within the window, the encoder's are neither."""
    params, inputs, wanted, _ = by_formula()
    np.testing.assert_allclose(hidden(Transformer(ONE, SIMPLE), params, inputs).x, wanted, atol=2e-5)


def test_patterns_are_read_and_edited() -> None:
    """The two of a query are of one softmax; edited logits change both, and what is left as it is changes nothing."""
    params, inputs, _, pattern = by_formula()
    whole = lambda x: x  # noqa: E731
    reads = dict.fromkeys(("attn_pattern", f"{CROSS}attn_pattern", "attn_head", "attn_value"), whole)
    found = jax.jit(Transformer(ONE, SIMPLE, Watch(reads)).hidden)(params, inputs)
    both = np.concatenate([found.taps["attn_pattern"][0], found.taps[f"{CROSS}attn_pattern"][0]], axis=-1)
    np.testing.assert_allclose(both, pattern, atol=2e-6)
    np.testing.assert_array_equal(found.x, hidden(Transformer(ONE, SIMPLE), params, inputs).x)
    blind = Watch(reads, {f"{CROSS}attn_logits": lambda x, _: x - 1e9})
    taps = jax.jit(Transformer(ONE, SIMPLE, blind).hidden)(params, inputs).taps
    alone = pattern[..., :9] / pattern[..., :9].sum(-1, keepdims=True)
    np.testing.assert_allclose(taps["attn_pattern"][0], alone, atol=2e-6)
    wanted = np.einsum("bnts,bsnh->btnh", alone, np.repeat(found.taps["attn_value"][0], 2, axis=2))
    np.testing.assert_allclose(taps["attn_head"][0], wanted, atol=1e-5)


@cache
def whole_rows() -> np.ndarray:
    """The logits of rows of 12 tokens, at once."""
    inputs = given(BOTH, 12)
    return run(Transformer(BOTH, SIMPLE), lively(BOTH), inputs.tokens, encoder=inputs.encoder)


@pytest.mark.parametrize("compute", [SIMPLE, LOOPED])
def test_cached_is_full(compute: Any) -> None:
    """In pieces longer than the window and of one token; the encoder is read once."""
    model, params, inputs = Transformer(BOTH, compute), lively(BOTH), given(BOTH, 12)
    cache: Any = model.empty_cache(2, 12, 7)
    got = []
    for start, end in ((0, 2), (2, 3), (3, 9), (9, 10), (10, 11), (11, 12)):
        piece = replace(inputs, tokens=inputs.tokens[:, start:end], encoder=inputs.encoder if start == 0 else None)
        logits, cache = extend(model, params, cache, piece)
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, 1), whole_rows(), atol=1e-4)


def test_without_an_encoder_it_is_attention() -> None:
    """And has its parameters; a decoder has one table for both sides, of which the encoder learns."""
    plain_cfg, merged = replace(LLAMA, attention=OWN), replace(LLAMA, attention=MERGED)
    params, ids = lively(plain_cfg), tokens(LLAMA, 2, 9)
    found, wanted = (run(Transformer(cfg, SIMPLE), params, ids) for cfg in (merged, plain_cfg))
    np.testing.assert_array_equal(found, wanted)
    shapes = Transformer(BOTH, SIMPLE).shapes()
    assert "stem" not in shapes["encoder"] and not any("cross" in name for name in shapes["layers"]["0"])
    apart = replace(BOTH, one_embedding=None)
    assert count.parameters(apart) - count.parameters(BOTH) == BOTH.vocab * BOTH.width


def test_flops_are_of_both_sides_keys() -> None:
    """Keys and values are made of the encoder's tokens too; queries and the rest of the decoder's alone."""
    wide = count.flops_per_row(BOTH, 8, 12) - count.flops_per_row(BOTH, 8, 11)
    encoder = replace(BOTH, encoder=replace(ENCODER, layers=4))
    # of one more token: its keys and values in each decoder layer, 4 N H a query that looks at it, and its encoder
    own = BOTH.layers * (6 * 2 * 16 * 2 * 6 + 3 * 8 * 4 * 4 * 6)
    more = count.flops_per_row(encoder, 8, 12) - count.flops_per_row(encoder, 8, 11)
    np.testing.assert_allclose(wide - (more - wide), own, rtol=0.15)


def test_a_window_may_be_longer_behind() -> None:
    """Of a token that sees one before it and three behind; by blocks as whole, and as far as a kernel is to look."""
    mask, spans = Mask(causal=False, window=2, window_after=3), (Span(0, 8), Span(0, 8))
    allowed = np.asarray(mask.allowed(*spans))[0]
    distance = np.arange(8) - np.arange(8)[:, None]
    np.testing.assert_array_equal(allowed, (distance >= -1) & (distance <= 3))
    assert mask.reach(4, 5) == (3, 8) and mask.reached(4, 5) == (1, 6)
    inputs, params = tokens(ENCODER, 2, 9), lively(ENCODER)
    whole = hidden(Transformer(ENCODER, SIMPLE), params, inputs).x
    for kind in ("blocked", "flash"):
        compute = replace(SIMPLE, attention=kind, block=4)
        np.testing.assert_allclose(hidden(Transformer(ENCODER, compute), params, inputs).x, whole, atol=1e-5)
    even = replace(ENCODER, pattern=(LayerKind(2, window_after=1, positions=Rotary(50.0)), LayerKind()))
    same = replace(even, pattern=(replace(even.pattern[0], window_after=None), LayerKind()))
    found = [hidden(Transformer(cfg, SIMPLE), params, inputs).x for cfg in (even, same)]
    np.testing.assert_array_equal(*found)


def test_fields_that_came_late_are_in_no_older_json() -> None:
    assert "one_embedding" not in plain(LLAMA) and "window_after" not in plain(LLAMA)["pattern"][0]
    assert build(ModelConfig, plain(BOTH)) == BOTH and fingerprint(BOTH) != fingerprint(
        replace(BOTH, one_embedding=None)
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            dict(encoder=None, encoder_layers=2),
            "one_embedding: expected model.encoder of the decoder's vocab and width",
        ),
        (
            dict(encoder=replace(ENCODER, vocab=40)),
            "one_embedding: expected model.encoder of the decoder's vocab and w",
        ),
        (
            dict(encoder=replace(ENCODER, width=12), one_embedding=None),
            "model.encoder.width=12: expected the decoder's",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(BOTH, **change)


def test_gradients_are_those_of_a_loop_over_layers() -> None:
    params, inputs = lively(BOTH), given(BOTH, 9)

    def gradient(compute: Any) -> Any:
        return jax.jit(jax.grad(lambda p: jnp.square(Transformer(BOTH, compute)(p, inputs)).mean()))(params)

    found, wanted = gradient(replace(LOOPED, remat="full")), gradient(SIMPLE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)
    assert np.abs(wanted["stem"]["tokens"]).max() > 0
