"""The layout for decoding: the same values in the same memory, the same text, and no operation that joins weights."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.generate import extend, generate, prefill
from lm.decode.layout import for_decoding
from lm.decode.sampling import Sampling
from lm.model.inputs import Inputs
from lm.model.native import Streamed
from lm.model.transformer import Params, Transformer
from tests.model.reference import LLAMA, MODELS, SIMPLE, lively

TRAINED = replace(SIMPLE, flat="yes", remat="full")


def values(w: Any) -> jax.Array:
    return w.values if isinstance(w, Streamed) else w


def test_the_output_is_not_copied() -> None:
    """Neither of its own nor the embedding."""
    for name, path in (("llama", ("head", "kernel")), ("gemma 2", ("stem", "tokens"))):
        cfg, params = MODELS[name], lively(MODELS[name])
        after = for_decoding(Transformer(cfg, SIMPLE), params).params
        given = params[path[0]][path[1]]
        kept = values(after["table"] if cfg.tied else after["head"]["kernel"])
        assert kept.unsafe_buffer_pointer() == given.unsafe_buffer_pointer()


def test_a_layer_is_a_view_of_the_stack() -> None:
    params = jax.tree.map(jnp.copy, lively(LLAMA))
    layers = for_decoding(Transformer(LLAMA, TRAINED), params).params["layers"]["0"]
    assert len(layers) == LLAMA.layers
    for i, layer in enumerate(layers):
        assert set(layer) == set(params["layers"]["0"])
        for name, stack in params["layers"]["0"].items():
            view = values(layer[name])
            np.testing.assert_array_equal(view, stack[i], strict=True)
            assert view.unsafe_buffer_pointer() == stack.unsafe_buffer_pointer() + i * view.nbytes


def test_a_layer_stays_on_its_device() -> None:
    params = jax.device_put(lively(LLAMA), jax.devices()[1])
    layers = for_decoding(Transformer(LLAMA, TRAINED), params).params["layers"]["0"]
    up = values(layers[0]["up"])
    assert up.devices() == {jax.devices()[1]} and up.committed


def test_parameters_can_be_donated_afterwards() -> None:
    params = jax.tree.map(jnp.copy, lively(LLAMA))
    generate(*for_decoding(Transformer(LLAMA, TRAINED), params), [[1, 2]], 3)
    before = params["layers"]["0"]["up"].unsafe_buffer_pointer()
    after = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)(params)
    assert before == after["layers"]["0"]["up"].unsafe_buffer_pointer()


@pytest.mark.parametrize("name", ["llama", pytest.param("latent", marks=pytest.mark.slow)])
def test_the_text_is_that_of_the_stack(name: str) -> None:
    model, params = Transformer(MODELS[name], SIMPLE), lively(MODELS[name])
    decoder = for_decoding(model, params)
    assert decoder.model != model
    prompts, greedy = [[3, 1, 4, 1, 5], [9, 2]], Sampling(0)
    assert generate(*decoder, prompts, 8, sampling=greedy) == generate(model, params, prompts, 8, sampling=greedy)


def compiled_step(model: Transformer, params: Params) -> str:
    inputs = Inputs(jnp.ones((1, 4), jnp.int32), segments=jnp.ones((1, 4), jnp.int32))
    state = jax.eval_shape(lambda p: prefill(model, p, inputs, jax.random.key(0), 16, Sampling(0)), params)
    return extend.lower(model, params, state, 4, Sampling(0), ()).as_text()


def test_a_step_joins_no_weights() -> None:
    """Query, key and value [16, 16 + 8 + 8] as one product would be copied side by side at every step."""
    model, params = Transformer(LLAMA, TRAINED), lively(LLAMA)
    joined = "tensor<16x32xf32>"
    assert joined in compiled_step(model, params)
    assert joined not in compiled_step(*for_decoding(model, params))


def test_elsewhere_it_stays_as_it_is() -> None:
    model, params = Transformer(LLAMA, replace(SIMPLE, backend="tpu")), lively(LLAMA)
    assert for_decoding(model, params) == (model, params)
    split = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec())
    model, params = Transformer(LLAMA, SIMPLE), jax.device_put(params, split)
    assert for_decoding(model, params).params is params
