"""Taps: what transformers records of a model's inside; nothing where nobody looks; each of them alive."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certificates.cases import Case, counted, inputs
from lm.inspect.edits import Edit, Replace, Zero
from lm.inspect.look import Look, look, places
from lm.model.compute import Compute
from lm.model.config import LayerKind
from lm.model.delta import GatedDeltaNet
from lm.model.families import llama
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.model.wiring import Sandwich
from lm.pretrained import Pretrained, load
from lm.sharding.mesh import make_mesh
from lm.sharding.tracing import use_mesh
from tests.model.reference import lively
from tests.pretrained.small import BY_NAME, checkpoint

FEW_STATES = (slice(None), slice(None), slice(12, None, 13), slice(3, None, 13))  # as they were recorded
FEW_LOOKS = (slice(None), slice(None), slice(None), slice(12, None, 13), slice(2, None, 11))
RECORDED = json.loads((Path(__file__).parent / "inside.json").read_text())  # by certificates/inside.py
ALIKE = ("Mistral", "GemmaFor", "Gemma3ForConditional", "BertForPreTraining")  # with the layers of another of RECORDED
LIMIT = 1e-5  # of the standard deviation of a state, and of a probability
STATE = LayerKind(mixer=GatedDeltaNet(2, 2, key_dim=8, value_dim=8, chunk=4))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pretrained]:
    return cache(lambda name: load(checkpoint(BY_NAME[name], tmp_path_factory.mktemp("case"))))


@pytest.fixture(scope="module")
def read(loaded: Callable[[str], Pretrained]) -> Callable[[str], Look]:
    """A case's logits and all that can be read: one program for the tests that compare them."""

    def compiled(name: str) -> Look:
        model = loaded(name)
        x, every = given(model, BY_NAME[name]), own_places(model)
        return jax.jit(lambda p: look(model.model, p, x, every))(model.params)

    return cache(compiled)


@pytest.mark.parametrize("name", RECORDED)
def test_states_and_patterns_are_those_of_transformers(name: str, read: Callable[[str], Look]) -> None:
    known, case, taps = RECORDED[name], BY_NAME[name], read(name).taps
    for place, (std, numbers) in known.items():
        few, scale = (FEW_LOOKS, 1) if "pattern" in place else (FEW_STATES, std)
        wanted, found = np.array(numbers), np.asarray(taps[place])[few]
        apart = np.where(real_queries(case, place, few), np.abs(found - wanted), 0)
        assert apart.max() <= LIMIT * scale + 1e-7, place


def real_queries(case: Case, name: str, few: tuple[slice, ...]) -> np.ndarray:
    """Which of the recorded queries are no padding, to broadcast to [L, B, t, D] or [L, B, N, t, S]."""
    own = inputs(case)["attention_mask"] > 0 if name.startswith("encoder_") else counted(case)
    real = own[few[1]][:, few[-2]]
    return real[None, :, None, :, None] if "pattern" in name else real[None, :, :, None]


def given(model: Pretrained, case: Case) -> Inputs:
    return model.inputs(**inputs(case))


def own_places(model: Pretrained) -> tuple[str, ...]:
    return places(model.model, model.config.has_encoder)


@dataclass(frozen=True, eq=False)
class Asked(Edit):
    """An edit where it is asked for."""

    asked: Any = True

    def mask(self, x: jax.Array, layer: Any) -> jax.Array:
        return super().mask(x, layer) & self.asked


@dataclass(frozen=True, eq=False)
class Zeroed(Asked, Zero):
    """Zero ablation where it is asked for."""


@dataclass(frozen=True, eq=False)
class Replaced(Asked, Replace):
    """A replacement where it is asked for."""


@pytest.mark.parametrize("name", [name for name in RECORDED if not name.startswith(ALIKE)])
def test_every_tap_is_alive(name: str, loaded: Callable[[str], Pretrained], read: Callable[[str], Look]) -> None:
    """Read, and replaced by itself, it changes no bit; zeroed it changes the logits. (In Gemma 2 and 3 the compiler
    groups the sums of the norms otherwise around an edit: a rounding or two.)"""
    model, case = loaded(name), BY_NAME[name]
    x, every = given(model, case), own_places(model)

    @jax.jit
    def run(params: Any, values: Any, which: jax.Array) -> Any:
        """Every place replaced by `values` where `which` is -1, that of this index alone zeroed otherwise."""
        own = [Replaced(place, values=values[place], asked=which < 0) for place in every]
        zeros = [Zeroed(place, asked=which == i) for i, place in enumerate(every)]
        return look(model.model, params, x, every, [*own, *zeros])

    off, real, as_read = np.asarray(model.logits(**inputs(case))), counted(case), read(name)
    np.testing.assert_array_equal(as_read.logits, off)
    apart = np.abs(np.asarray(run(model.params, as_read.taps, jnp.array(-1)).logits) - off).max() / off.std()
    assert apart <= (LIMIT if isinstance(model.config.wiring, Sandwich) else 0)
    for i, place in enumerate(every):
        zeroed = np.asarray(run(model.params, as_read.taps, jnp.array(i)).logits)
        assert np.isfinite(zeroed[real]).all() and np.abs(zeroed - off)[real].max() > 1e-3, place


@pytest.mark.parametrize("compute", [dict(unroll=0), dict(remat="minimal", attention="blocked", block=8)])
def test_gradients_are_the_same_where_all_is_read(compute: dict[str, Any], loaded: Callable[[str], Pretrained]) -> None:
    name = "LlamaForCausalLM-grouped--head-size-20--tied"
    model = loaded(name)
    watched = replace(model.model, compute=replace(model.model.compute, **compute))
    x = model.inputs(**{field: values[:, :16] for field, values in inputs(BY_NAME[name]).items()})  # two blocks

    def loss(params: Any, taps: tuple[str, ...]) -> tuple[jax.Array, Any]:
        logits, read = look(watched, params, x, taps)
        return jnp.square(logits).sum(), read

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    ((off, _), gradient), ((on, read), same) = run(model.params, ()), run(model.params, own_places(model))
    assert off == on and set(read) == set(own_places(model))
    jax.tree.map(np.testing.assert_array_equal, same, gradient)


def test_an_edit_is_of_its_layer_heads_and_positions(loaded: Callable[[str], Pretrained]) -> None:
    model = loaded("LlamaForCausalLM-grouped--head-size-20--tied")
    tokens = jnp.asarray(inputs(BY_NAME["LlamaForCausalLM-grouped--head-size-20--tied"])["input_ids"])
    taps, edit = ["attn_head", "resid_post"], Zero("attn_head", 1, heads=(0, 2), positions=39)
    off, on = (
        jax.jit(partial(look, model.model, taps=taps, edits=edits))(model.params, tokens).taps for edits in ([], [edit])
    )
    zero = np.zeros(off["attn_head"].shape[:-1], bool)
    zero[1, :, 39, 0] = zero[1, :, 39, 2] = True
    assert (np.asarray(on["attn_head"])[zero] == 0).all()
    np.testing.assert_array_equal(np.asarray(on["resid_post"])[0], off["resid_post"][0])
    moved = (np.asarray(on["resid_post"]) != np.asarray(off["resid_post"])).any(-1)
    assert moved[1:, :, 39].all() and not moved[:, :, :39].any()


def test_layers_of_two_kinds_are_in_their_order() -> None:
    """Layers of a state before those of attention, whose patterns alone there are."""
    cfg = replace(llama(vocab=32, layers=4, width=16, heads=2, mlp=16, context=16), pattern=(STATE, LayerKind()))
    model = Transformer(cfg, Compute(dtype="float32", matmul="float32").resolve())
    params, tokens = lively(cfg), np.arange(8, dtype=np.int32)[None] % 7
    wanted = ("resid_pre", "resid_post", "attn_pattern", "embedding")
    taps = jax.jit(lambda p, x: look(model, p, x, wanted).taps)(params, tokens)
    taps = jax.device_get(taps)  # a slice of what is on a device is a program
    np.testing.assert_array_equal(taps["resid_pre"][1:], taps["resid_post"][:-1])
    np.testing.assert_array_equal(taps["resid_pre"][:1], taps["embedding"])
    assert taps["resid_pre"].shape[0] == 4 and taps["attn_pattern"].shape == (2, 1, 2, 8, 8)
    own = taps["attn_pattern"]  # of two layers: which they are, it does not say
    with pytest.raises(ValueError, match=r"attn_pattern has values of 2 layers, and this model 4"):
        jax.eval_shape(lambda: look(model, params, tokens, edits=[Replace("attn_pattern", values=own)]))
    with pytest.raises(ValueError, match=r"attn_head of layer 4: this model has layers 0 to 3"):
        jax.eval_shape(lambda: look(model, params, tokens, edits=[Zero("attn_head", layers=4)]))


def test_a_mesh_reads_the_same() -> None:
    """Rows, heads and width over four devices: the values of one."""
    cfg = llama(vocab=32, layers=2, width=16, heads=4, mlp=16, context=16)
    model = Transformer(cfg, Compute(dtype="float32", matmul="float32").resolve())
    params, tokens = lively(cfg), np.arange(32, dtype=np.int32).reshape(4, 8) % 7
    every = places(model)
    alone = jax.jit(lambda p, x: look(model, p, x, every))(params, tokens)
    with use_mesh(make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])):
        split = jax.jit(lambda p, x: look(model, p, x, every))(params, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), split, alone)
