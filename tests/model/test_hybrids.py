"""Hybrids of recurrent and attending layers: the gate of attention, what is counted, and families by name."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from lm.model import count
from lm.model.config import ModelConfig
from lm.model.delta import GatedDeltaNet
from lm.model.gated import GatedAttention
from lm.model.hybrids import qwen3_5, qwen3_next
from lm.model.inputs import Inputs
from lm.model.parts import FeedForward
from lm.model.positions import Relative
from lm.model.transformer import Transformer
from tests.model.reference import LLAMA, SIMPLE, extend, lively, run, tokens

LOOPED = replace(SIMPLE, unroll=0)
SMALL: dict[str, Any] = dict(vocab=29, width=12, heads=4, kv_heads=2, head_dim=8, mlp=10, context=24)
STATE = dict(key_heads=2, value_heads=4, key_dim=6, value_dim=3)
HYBRID = qwen3_5(**SMALL, **STATE, layers=5)
WITH_EXPERTS = qwen3_next(**SMALL, **STATE, layers=4, experts=4, top_k=2, shared=6)
BIG = dict(vocab=151936, layers=48, width=2048, heads=16, kv_heads=2, context=262144)
# published in billions: all, and without embedding and output (the model's card)
NEXT = qwen3_next(**BIG)
NINE = qwen3_5(vocab=248320, layers=32, width=4096, heads=16, kv_heads=4, mlp=12288, context=262144)
TWENTY_SEVEN = qwen3_5(
    vocab=248320, layers=64, width=5120, heads=24, kv_heads=4, value_heads=48, mlp=17408, context=262144
)


@pytest.mark.parametrize(("cfg", "billions"), [(NEXT, 80), (NINE, 9), (TWENTY_SEVEN, 27)], ids=["80B", "9B", "27B"])
def test_parameters_are_as_published(cfg: ModelConfig, billions: int) -> None:
    assert round(count.parameters(cfg) / 1e9) == billions
    assert count.parameters(cfg) == sum(count.by_part(cfg).values())


def test_of_80_billion_parameters_3_are_used_and_79_are_in_layers() -> None:
    parts = count.by_part(NEXT)
    assert round(sum(n for path, n in parts.items() if path.startswith("layers/")) / 1e9) == 79
    assert isinstance(NEXT.ffn, FeedForward)
    used = sum(n * (10 / 512 if path.split("/")[-1] in ("gate", "up", "down") else 1) for path, n in parts.items())
    assert 3e9 < used < 4e9


def test_a_gate_multiplies_what_the_heads_read() -> None:
    """At 0 it halves it: the model is that without a gate whose output weights are half as large."""
    plain = replace(LLAMA, layers=2)
    gated = replace(plain, attention=GatedAttention(**vars(plain.attention)))
    params, ids = lively(gated), tokens(gated, 2, 9)
    layer = params["layers"]["0"]
    closed = {**params, "layers": {"0": {**layer, "out_gate": 0 * layer["out_gate"]}}}
    half = {name: a / 2 if name == "out" else a for name, a in layer.items() if name != "out_gate"}
    wanted = run(Transformer(plain, SIMPLE), {**params, "layers": {"0": half}}, ids)
    np.testing.assert_allclose(run(Transformer(gated, SIMPLE), closed, ids), wanted, atol=2e-6)
    assert np.abs(run(Transformer(gated, SIMPLE), params, ids) - wanted).max() > 1e-2


@pytest.mark.parametrize("hybrid", [HYBRID, WITH_EXPERTS], ids=["dense", "experts"])
def test_cached_is_full(hybrid: ModelConfig) -> None:
    """In pieces of several sizes, and of rows of several lengths; of a layer with a state and one that attends."""
    cfg = replace(hybrid, layers=2, pattern=hybrid.pattern[2:])
    model, params, ids = Transformer(cfg, LOOPED), lively(cfg), tokens(cfg, 2, 14)
    full, cache, got = run(model, params, ids), model.empty_cache(2, 14), []

    def six(cache: Any, start: int, *lengths: int) -> Any:
        """So many of the six tokens of each row from `start` on."""
        segments = (np.arange(6) < np.array(lengths)[:, None]).astype(np.int32)
        return extend(model, params, cache, Inputs(ids[:, start : start + 6], segments=segments))

    for start in (0, 7):
        logits, cache = six(cache, start, 6, 6)
        last, cache = extend(model, params, cache, Inputs(ids[:, start + 6 : start + 7]))
        got += [logits, last]
    np.testing.assert_allclose(np.concatenate(got, 1), full, atol=1e-4)
    _, cache = six(model.empty_cache(2, 14), 0, 6, 4)
    last, _ = extend(model, params, cache, Inputs(np.stack([ids[0, 6:7], ids[1, 4:5]])))
    np.testing.assert_allclose(last, np.stack([full[0, 6:7], full[1, 4:5]]), atol=1e-4)


def test_what_is_counted_is_what_there_is() -> None:
    """FLOPs of all products, of a gated layer and of one that keeps a state."""
    params = jax.tree.leaves_with_path(lively(HYBRID)["layers"])
    for slot, kind in (("0", HYBRID.by_layer[0].mixer), ("3", HYBRID.by_layer[3].mixer)):
        named = {path[1].key: a for path, a in params if path[0].key == slot}
        products = ("query", "key", "value", "out", "out_gate", "beta", "decay")
        sizes = sum(2 * named[name][0].size for name in products if name in named)
        assert sum(kind.products(HYBRID.width).values()) == sizes, kind
    assert isinstance(HYBRID.by_layer[0].mixer, GatedDeltaNet) and isinstance(HYBRID.by_layer[3].mixer, GatedAttention)
    assert HYBRID.attention.activations()["query"] == 2 * 4 * 8


def test_a_gated_layer_reads_no_encoder() -> None:
    cfg = replace(LLAMA, layers=1, positions=Relative(), encoder_layers=1)
    cfg = replace(cfg, attention=GatedAttention(**vars(cfg.attention)))
    with pytest.raises(ValueError, match="GatedAttention reads no encoder: give these layers another mixer"):
        Transformer(cfg, SIMPLE).shapes()
