"""Counts against the published ones, and against a formula by hand."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lm.model import count
from lm.model.config import ModelConfig
from lm.model.families import gpt, llama
from tests.model.reference import GPT, LLAMA, lively

PUBLISHED = {
    "GPT-2": (gpt(vocab=50257, layers=12, width=768, heads=12, context=1024), 124_439_808),
    "GPT-2 XL": (gpt(vocab=50257, layers=48, width=1600, heads=25, context=1024), 1_557_611_200),
    "Llama 2 7B": (llama(vocab=32000, layers=32, width=4096, heads=32, mlp=11008, context=4096), 6_738_415_616),
    "Llama 3 8B": (
        llama(vocab=128256, layers=32, width=4096, heads=32, kv_heads=8, mlp=14336, context=8192, theta=5e5),
        8_030_261_248,
    ),
}


@pytest.mark.parametrize(("cfg", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameters_are_as_published(cfg: ModelConfig, parameters: int) -> None:
    assert count.parameters(cfg) == parameters == sum(count.by_part(cfg).values())


def test_parts_are_the_tree_s() -> None:
    parts = count.by_part(LLAMA)
    assert parts["stem/tokens"] == 41 * 16 and parts["layers/key"] == 3 * 16 * 2 * 4
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


def test_tree_bytes() -> None:
    tree = {"a": jnp.zeros((3, 5)), "b": (jax.ShapeDtypeStruct((7,), jnp.bfloat16), jnp.int32(1))}
    assert count.tree_bytes(tree) == 3 * 5 * 4 + 7 * 2 + 4
    assert count.tree_bytes(count.shapes(GPT)) == 4 * count.parameters(GPT)
