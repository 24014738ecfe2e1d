"""Layers that read an earlier one's keys and values, embeddings for each layer, values that are normalised or are the
keys, and positions that turn a part of the pairs (Gemma 4)."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model import count
from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.hybrids import gemma4
from lm.model.inputs import Inputs
from lm.model.parts import FeedForward, RMSNorm, UnscaledRMSNorm
from lm.model.per_layer import PerLayerEmbedding
from lm.model.positions import ProportionalRotary, Rotary
from lm.model.shared_kv import NormedValues, SharedAttention
from lm.model.transformer import Transformer
from tests.model.reference import LLAMA, SIMPLE, extend, lively, run, tokens

NORM = RMSNorm(1e-6)
LOOPED = replace(SIMPLE, unroll=0)
FULL = NormedValues(4, 6, 2, qk_norm=NORM, scale=1.0, value_norm=UnscaledRMSNorm())
LOCAL = replace(FULL, head_dim=4, kv_heads=1)
READS = SharedAttention(4, 6, 2, qk_norm=NORM, source=1)
READS_LOCAL = SharedAttention(4, 4, 1, qk_norm=NORM, scale=0.5, source=0)
WIDE = FeedForward(20, "gelu_tanh", gated=True)
LAYERS: dict[str, Any] = dict(
    layers=6,
    attention=FULL,
    positions=ProportionalRotary(fraction=0.5),
    first_layers=(LayerKind(3, LOCAL, Rotary(100.0)), LayerKind()),
    pattern=(LayerKind(3, READS_LOCAL, Rotary(100.0), WIDE), LayerKind(mixer=READS, ffn=WIDE)),
)
SHARED = replace(LLAMA, **LAYERS, wiring=PerLayerEmbedding(size=5))


def test_a_layer_reads_what_its_source_reads() -> None:
    """With the source's weights beside its own it is a layer with keys and values: of what the source read."""
    cfg = replace(LLAMA, layers=2, first_layers=(LayerKind(),), pattern=(LayerKind(mixer=SharedAttention(4, 4, 2)),))
    assert isinstance(LLAMA.attention.kv, int)
    cfg = replace(cfg, pattern=(LayerKind(mixer=SharedAttention(**vars(LLAMA.attention))),))
    params, ids = lively(cfg), tokens(cfg, 2, 9)
    first, second = params["layers"]["first0"], params["layers"]["0"]
    assert {"key", "value"} <= set(first) and not {"key", "value"} & set(second)
    still = {**params, "layers": {"first0": {**first, "out": 0 * first["out"], "down": 0 * first["down"]}, "0": second}}
    # a first layer that leaves the stream as it is: both layers norm the same x, by the source's scale
    own = {name: first[name] for name in ("key", "value")}
    alone = {"0": {**second, **own, "attention_norm_scale": first["attention_norm_scale"]}}
    same = {"first0": still["layers"]["first0"], "0": {**second, "attention_norm_scale": first["attention_norm_scale"]}}
    wanted = run(Transformer(replace(LLAMA, layers=1), SIMPLE), {**params, "layers": alone}, ids)
    np.testing.assert_allclose(run(Transformer(cfg, SIMPLE), {**params, "layers": same}, ids), wanted, atol=1e-5)


def test_cached_is_full() -> None:
    """In pieces longer than the window and of one token, and of rows of several lengths."""
    cfg = replace(SHARED, layers=4)
    model, params, ids = Transformer(cfg, LOOPED), lively(cfg), tokens(cfg, 2, 14)
    full, cache, got = run(model, params, ids), model.empty_cache(2, 14), []

    def five(cache: Any, start: int, lengths: tuple[int, int]) -> Any:
        segments = (np.arange(5) < np.array(lengths)[:, None]).astype(np.int32)
        return extend(model, params, cache, Inputs(ids[:, start : start + 5], segments=segments))

    for start, end in ((0, 5), (5, 6), (6, 11), (11, 12), (12, 13), (13, 14)):
        piece = Inputs(ids[:, start:end])
        logits, cache = five(cache, start, (5, 5)) if end - start == 5 else extend(model, params, cache, piece)
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, 1), full, atol=1e-4)
    _, cache = five(model.empty_cache(2, 14), 0, (5, 3))
    last, _ = extend(model, params, cache, Inputs(np.stack([ids[0, 5:6], ids[1, 3:4]])))
    np.testing.assert_allclose(last, np.stack([full[0, 5:6], full[1, 3:4]]), atol=1e-4)


def test_a_loop_over_layers_is_their_scan() -> None:
    """Logits and gradients, with all that a layer computes kept or computed again."""
    ids, params = tokens(SHARED, 2, 9), lively(SHARED)

    @partial(jax.jit, static_argnums=0)
    def gradient(compute: Compute, params: Any) -> Any:
        model = Transformer(SHARED, compute)
        return jax.value_and_grad(lambda p: jnp.square(model(p, ids)).mean())(params)

    wanted = gradient(LOOPED, params)
    assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(wanted))
    found = gradient(replace(SIMPLE, remat="full"), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, wanted)


def test_only_the_layers_with_keys_have_a_cache() -> None:
    cache = Transformer(SHARED, SIMPLE).empty_cache(2, 14).layers
    assert all(bool(jax.tree.leaves(cache[name])) == name.startswith("first") for name in SHARED.slots)


def test_a_layer_is_given_its_own_part_of_a_token() -> None:
    """Another row of the table changes the logits of its token; of later ones too, where a later layer has keys."""
    params, ids = lively(SHARED), np.arange(3, 12, dtype=np.int32)[None]
    model = Transformer(SHARED, LOOPED)
    wanted = run(model, params, ids)
    for layer in range(SHARED.layers):
        table = params["stem"]["per_layer_tokens"].at[ids[0, 4], 5 * layer : 5 * layer + 5].add(1.0)
        found = run(model, {**params, "stem": {**params["stem"], "per_layer_tokens": table}}, ids)
        moved = np.abs(found - wanted).max((0, 2)) > 1e-6
        assert moved[4] and not moved[:4].any() and moved[5:].any() == (layer == 0)


def test_what_is_counted_is_what_there_is() -> None:
    params = lively(SHARED)["layers"]
    for slot, name in ((SHARED.slots["first1"], "first1"), (SHARED.slots["1"], "1")):
        sizes = sum(2 * params[name][n][0].size for n in ("query", "key", "value", "out") if n in params[name])
        assert sum(slot.mixer.products(SHARED.width).values()) == sizes
    bare = replace(SHARED, wiring=LLAMA.wiring)
    more = count.flops_per_token(SHARED, 8) - count.flops_per_token(bare, 8)
    assert more == 6 * SHARED.layers * SHARED.width * 5 * 3  # gate, out, and the projection of the stem
    assert READS.activations() == dict(query=24, attention=24)


def test_values_that_are_keys_are_so_before_norm_and_positions() -> None:
    plain = replace(LLAMA, layers=2, attention=NormedValues(**vars(LLAMA.attention), value_norm=UnscaledRMSNorm()))
    tied = replace(plain, attention=replace(plain.attention, qk_norm=NORM, keys_are_values=True))
    apart = replace(tied, attention=replace(tied.attention, keys_are_values=False))
    params, ids = lively(tied), tokens(tied, 2, 9)
    layer = params["layers"]["0"]
    assert "value" not in layer and tied.attention.products(16)["value"] == 0
    both = {**params, "layers": {"0": {**layer, "value": layer["key"]}}}
    np.testing.assert_array_equal(
        run(Transformer(tied, SIMPLE), params, ids), run(Transformer(apart, SIMPLE), both, ids)
    )


def test_proportional_positions_turn_the_first_pairs_as_fast_as_a_whole_head() -> None:
    at = jnp.arange(7)[None]
    cos, sin = ProportionalRotary(50.0, fraction=0.4).table(at, 12)
    whole_cos, whole_sin = Rotary(50.0).table(at, 12)
    np.testing.assert_array_equal(cos[..., :2], whole_cos[..., :2])
    np.testing.assert_array_equal(sin[..., :2], whole_sin[..., :2])
    assert (cos[..., 2:] == 1).all() and (sin[..., 2:] == 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        dict(pattern=(LayerKind(mixer=replace(READS, source=2)),)),
        dict(pattern=(LayerKind(mixer=replace(READS, kv_heads=1)),)),
        dict(pattern=(LayerKind(4, mixer=READS),)),
        dict(first_layers=(LayerKind(mixer=replace(READS, source=0)), LayerKind()), pattern=(LayerKind(),)),
    ],
)
def test_a_source_is_an_earlier_layer_of_the_same_shape(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"SharedAttention.source=\d: expected one of model.first_layers before it"):
        replace(SHARED, **changes)


def test_the_last_layer_is_full_whatever_the_number_of_layers() -> None:
    sizes: dict[str, Any] = dict(vocab=29, width=12, heads=2, kv_heads=1, mlp=10, context=24, every=3, window=5)
    for layers, shared in ((4, 0), (6, 0), (5, 1), (8, 4), (9, 6)):
        windows = [slot.window for slot in gemma4(**sizes, layers=layers, shared=shared).by_layer]
        assert windows == [0 if (i + 1) % 3 == 0 or i == layers - 1 else 5 for i in range(layers)]


def test_it_is_a_model_config() -> None:
    assert isinstance(SHARED, ModelConfig) and SHARED.wiring.token_size == 5
