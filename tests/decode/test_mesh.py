"""Decoding over a mesh and as accelerators do it: the texts of one CPU, and no weights gathered while decoding."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.generate import extend, generate, prefill
from lm.decode.layout import cache_shardings, for_decoding, layout_for, on_mesh
from lm.decode.sampling import Sampling
from lm.model.config import ModelConfig
from lm.model.families import llama, mixtral
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.sharding.mesh import make_mesh
from lm.sharding.rules import DecodingLayout, Layout
from lm.sharding.shardings import shardings
from tests.model.reference import MODELS, SIMPLE, lively

SIZES: dict[str, Any] = dict(vocab=64, layers=2, width=16, heads=4, kv_heads=2, mlp=32, context=32)
LLAMA = llama(**SIZES)
SPREAD = {"llama": LLAMA, "mixtral": mixtral(**SIZES, experts=4)}
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [3], [11, 12]]
GREEDY: dict[str, Any] = dict(max_new_tokens=14, sampling=Sampling(temperature=0.0))
MESHES: list[dict[str, int]] = [dict(tensor=2, fsdp=2, data=2), dict(fsdp=8), dict(expert=2, fsdp=2, tensor=2)]
SLOWER = ("gemma 2", "relative", "latent", "gated deltanet")
MORE = [("llama", MESHES[1]), ("mixtral", MESHES[0]), ("mixtral", MESHES[1])]
ACCELERATED = replace(SIMPLE, backend="tpu", unroll=1)  # as for a TPU, but on the CPU


def spread(cfg: ModelConfig, mesh: dict[str, int]) -> Params:
    """Parameters as they are loaded over a mesh."""
    model = Transformer(cfg, SIMPLE)
    return jax.device_put(lively(cfg), shardings(model.shapes(), model.axes(), make_mesh(mesh)))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("llama", MESHES[0]),
        ("mixtral", MESHES[2]),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
    ids=str,
)
def test_over_a_mesh_texts_are_those_of_one_device(name: str, mesh: dict[str, int]) -> None:
    cfg = SPREAD[name]
    alone = generate(Transformer(cfg, SIMPLE), lively(cfg), PROMPTS, **GREEDY)
    for compute in (SIMPLE, ACCELERATED):
        assert generate(Transformer(cfg, compute), spread(cfg, mesh), PROMPTS, **GREEDY) == alone


@pytest.mark.parametrize("name", ["llama", "gpt-oss", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWER)])
def test_accelerators_write_the_same_texts(name: str) -> None:
    """Few queries read the cache before it is written, one layer of a stack; here in float32, on a CPU."""
    cfg = MODELS[name]
    alone = generate(Transformer(cfg, SIMPLE), lively(cfg), PROMPTS, **GREEDY)
    assert generate(Transformer(cfg, ACCELERATED), lively(cfg), PROMPTS, **GREEDY) == alone
    apart = for_decoding(Transformer(cfg, ACCELERATED), lively(cfg), "bfloat16")
    rounded = jax.jit(partial(jax.tree.map, lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)))(lively(cfg))
    texts = generate(*apart, PROMPTS, **GREEDY)
    assert texts == generate(Transformer(cfg, SIMPLE), rounded, PROMPTS, **GREEDY)


def test_a_step_gathers_no_weights() -> None:
    """What is gathered over the mesh is smaller than the smallest share of a matrix; a prefill gathers them."""
    cfg, mesh = llama(**SIZES | dict(width=64, vocab=1024)), dict(fsdp=4, tensor=2)
    model, params = Transformer(cfg, ACCELERATED), spread(cfg, mesh)
    inputs = Inputs(jnp.ones((4, 16), jnp.int32), segments=jnp.ones((4, 16), jnp.int32))

    def gathered(program: Any) -> int:
        shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", program.compile().as_text())
        return max((int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes), default=0)

    with on_mesh(params, cfg.width, 64):
        state = jax.eval_shape(lambda p: prefill(model, p, inputs, jax.random.key(0), 32, GREEDY["sampling"]), params)
        first = prefill.lower(model, params, inputs, jax.random.key(0), 32, GREEDY["sampling"])
    homes = cache_shardings(state.cache, make_mesh(mesh), DecodingLayout().rules)
    cache = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state.cache, homes)
    with on_mesh(params, cfg.width, 4):
        step = extend.lower(model, params, replace(state, cache=cache), 1, GREEDY["sampling"], ())
    smallest = 64 * 2 * 8 // 2  # the keys' matrix, over tensor
    assert gathered(step) < smallest <= gathered(first)


def test_without_a_mesh_of_ours_nothing_is_set() -> None:
    with on_mesh(lively(LLAMA), 16, 1):
        assert jax.sharding.get_abstract_mesh().empty
    with on_mesh(spread(LLAMA, dict(data=8)), 16, 1):
        assert jax.sharding.get_abstract_mesh().shape["data"] == 8


def test_few_tokens_go_to_the_weights_and_weights_to_many() -> None:
    assert isinstance(layout_for(64, 32), DecodingLayout) and isinstance(layout_for(64, 33), Layout)


def test_int8_is_for_one_cpu() -> None:
    with pytest.raises(ValueError, match="weights='int8' are for decoding on one CPU: leave them out here"):
        for_decoding(Transformer(LLAMA, ACCELERATED), lively(LLAMA), "int8")
