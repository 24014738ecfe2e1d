"""Counts against the published ones, and against a formula by hand."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lm.model import count
from lm.model.config import LayerKind, ModelConfig
from lm.model.families import (
    bert,
    gemma,
    gemma2,
    gemma3,
    gpt,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    palm,
    qwen3,
    t5,
    t5_v1_1,
)
from lm.model.output import NoOutput
from lm.model.taps import Watch
from lm.model.transformer import Transformer, _abstract_boxes
from tests.model.reference import GPT, LLAMA, SIMPLE, lively

SEVEN = dict(vocab=32000, layers=32, width=4096, heads=32, kv_heads=8, mlp=14336, context=32768)
PUBLISHED = {
    "GPT-2": (gpt(vocab=50257, layers=12, width=768, heads=12, context=1024), 124_439_808),
    "GPT-2 XL": (gpt(vocab=50257, layers=48, width=1600, heads=25, context=1024), 1_557_611_200),
    "Llama 2 7B": (llama(vocab=32000, layers=32, width=4096, heads=32, mlp=11008, context=4096), 6_738_415_616),
    "Llama 3 8B": (
        llama(vocab=128256, layers=32, width=4096, heads=32, kv_heads=8, mlp=14336, context=8192, theta=5e5),
        8_030_261_248,
    ),
    "Mistral 7B": (mistral(**SEVEN), 7_241_732_096),
    "Mixtral 8x7B": (mixtral(**SEVEN), 46_702_792_704),
    "Qwen 3 0.6B": (
        qwen3(
            vocab=151936,
            layers=28,
            width=1024,
            heads=16,
            kv_heads=8,
            head_dim=128,
            mlp=3072,
            context=40960,
            tied=True,
        ),
        596_049_920,
    ),
    "Gemma 2B": (
        gemma(vocab=256000, layers=18, width=2048, heads=8, kv_heads=1, head_dim=256, mlp=16384, context=8192),
        2_506_172_416,
    ),
    "Gemma 2 2B": (
        gemma2(vocab=256000, layers=26, width=2304, heads=8, kv_heads=4, head_dim=256, mlp=9216, context=8192),
        2_614_341_888,
    ),
    "Gemma 3 1B": (
        gemma3(vocab=262144, layers=26, width=1152, heads=4, kv_heads=1, head_dim=256, mlp=6912, context=32768),
        999_885_952,
    ),
    "gpt-oss 20B": (
        gpt_oss(
            vocab=201088,
            layers=24,
            width=2880,
            heads=64,
            kv_heads=8,
            head_dim=64,
            mlp=2880,
            experts=32,
            context=131072,
        ),
        20_914_757_184,
    ),
    "T5 small": (t5(vocab=32128, layers=6, width=512, heads=8, head_dim=64, mlp=2048), 60_506_624),
    "T5 1.1 small": (t5_v1_1(vocab=32128, layers=8, width=512, heads=6, head_dim=64, mlp=1024), 76_961_152),
    "BERT base": (
        bert(vocab=30522, layers=12, width=768, heads=12, mlp=3072, context=512, output=NoOutput()),
        108_891_648,
    ),
}
# published in billions with two digits (2204.02311, table 1)
PALM = {"8.63": (32, 4096, 16), "62.50": (64, 8192, 32), "540.36": (118, 18432, 48)}


@pytest.mark.parametrize(("cfg", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameters_are_as_published(cfg: ModelConfig, parameters: int) -> None:
    assert count.parameters(cfg) == parameters == sum(count.by_part(cfg).values())


@pytest.mark.parametrize(("billions", "sizes"), PALM.items())
def test_palm_s_parameters(billions: str, sizes: tuple[int, int, int]) -> None:
    layers, width, heads = sizes
    cfg = palm(vocab=256000, layers=layers, width=width, heads=heads, context=2048)
    assert f"{count.parameters(cfg) / 1e9:.2f}" == billions


def test_parts_are_the_tree_s() -> None:
    parts = count.by_part(LLAMA)
    assert parts["stem/tokens"] == 41 * 16 and parts["layers/0/key"] == 3 * 16 * 2 * 4
    assert count.parameters(LLAMA) == sum(a.size for a in jax.tree.leaves(lively(LLAMA)))


def by_hand(cfg: ModelConfig, T: int) -> int:
    """6 for a parameter that multiplies, and 2 T H of q.k and as much of p.v for each head, three times."""
    D, N, K, H, F = cfg.width, cfg.attention.heads, cfg.attention.kv, cfg.attention.head_dim, cfg.ffn.mlp
    layer = 2 * D * N * H + 2 * D * K * H + (3 if cfg.ffn.gated else 2) * D * F
    return 6 * (cfg.layers * layer + cfg.vocab * D) + 3 * cfg.layers * N * (2 * T * H + 2 * T * H)


@pytest.mark.parametrize("cfg", [GPT, LLAMA, replace(LLAMA, tied=True), PUBLISHED["Llama 3 8B"][0]])
@pytest.mark.parametrize("length", [1, 128])
def test_flops_per_token(cfg: Any, length: int) -> None:
    assert count.flops_per_token(cfg, length) == by_hand(cfg, length)


def test_flops_of_experts_windows_and_encoders() -> None:
    """Only the chosen experts, the keys in the window, and for an encoder a token of its own."""
    sizes = dict(vocab=31, layers=4, width=16, heads=2, head_dim=8, mlp=20, context=64)
    dense, some = (mixtral(**sizes, experts=4, top_k=c, pattern=(LayerKind(),)) for c in (4, 1))
    experts = 6 * 4 * 3 * 16 * 20
    assert count.flops_per_token(dense, 8) - count.flops_per_token(some, 8) == 3 * experts
    full = gemma2(**sizes, window=64)
    keys = count.flops_per_token(full, 64) - count.flops_per_token(
        replace(full, pattern=(LayerKind(window=16),) * 2), 64
    )
    assert keys == 4 * 12 * 2 * 8 * (64 - 16)
    both, one = t5(**sizes), replace(t5(**sizes), encoder_layers=1)
    layer = 6 * (4 * 16 * 16 + 2 * 16 * 20) + 12 * 2 * 8 * 8
    assert count.flops_per_token(both, 8) - count.flops_per_token(one, 8) == 3 * layer


def test_tree_bytes() -> None:
    tree = {"a": jnp.zeros((3, 5)), "b": (jax.ShapeDtypeStruct((7,), jnp.bfloat16), jnp.int32(1))}
    assert count.tree_bytes(tree) == 3 * 5 * 4 + 7 * 2 + 4
    assert count.tree_bytes(count.shapes(GPT)) == 4 * count.parameters(GPT)


def test_equal_models_are_traced_once() -> None:
    sizes = dict(vocab=23, layers=1, width=8, heads=1, mlp=8, context=8)
    before = _abstract_boxes.cache_info().misses
    for watch in (None, None, Watch({"resid_post": lambda x: x})):
        model = Transformer(llama(**sizes), SIMPLE, watch)
        assert model.shapes()["stem"]["tokens"].shape == (23, 8) and model.axes()["stem"]["tokens"][0] == "vocab"
    assert _abstract_boxes.cache_info().misses == before + 1
