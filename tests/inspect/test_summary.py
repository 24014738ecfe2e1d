"""Values of places in two numbers a token: the first that is not finite, or differs by a bit, is found."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.inspect import summary
from lm.inspect.edits import Add
from lm.inspect.look import look, places
from lm.inspect.summary import (
    OUTPUT,
    Spot,
    first_difference,
    first_not_finite,
    order,
    summaries,
    summarize,
)
from lm.model.compute import Compute
from lm.model.config import LayerKind
from lm.model.delta import GatedDeltaNet
from lm.model.inputs import Inputs
from lm.model.taps import Watch, axes
from lm.model.transformer import Transformer
from tests.identity import batch, families
from tests.model.reference import lively

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "gated deltanet", "mixtral")]
FAMILIES = ["llama", *SLOW]


summarized = jax.jit(summarize, static_argnums=0)


def model_of(family: str) -> tuple[Transformer, Any, Inputs]:
    cfg, how = families()[family]
    model = Transformer(cfg, Compute(matmul="float32", loss_chunk=8, **how).resolve("cpu"))
    return model, lively(cfg), Inputs.of({k: v[:2] for k, v in batch(cfg, 0).items()})


@cache
def summaries_of(family: str) -> Any:
    """Those of its model and inputs, on the host."""
    model, params, inputs = model_of(family)
    return jax.device_get(jax.jit(lambda p: summaries(model, p, inputs))(params))


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "gated deltanet", "mixtral"))]
)
def test_a_summary_is_of_what_look_reads_in_the_order_of_computation(family: str) -> None:
    model, params, inputs = model_of(family)
    encoder = inputs.encoder is not None
    found, ordered = summaries_of(family), order(model, encoder)
    names, of_several_shapes = places(model, encoder), ("attn_head",) if family == "gated deltanet" else ()

    @jax.jit
    def looked(p: Any) -> Any:
        """What `look` reads, and a summary of each layer of it."""
        whole = look(model, p, inputs, [n for n in names if n not in of_several_shapes])
        return whole, {name: [summarize(axes(name), x) for x in taps] for name, taps in whole.taps.items()}

    whole, each = jax.device_get(looked(params))
    assert found.keys() == {*names, OUTPUT} and ordered[-1] == (OUTPUT, -1)
    for name in names:
        layers = [layer for place, layer in ordered if place == name]
        assert layers == sorted(layers) and len(layers) == len(found[name].largest)
        if name in of_several_shapes:
            continue
        assert len(layers) == len(whole.taps[name])
        one = jax.tree.map(lambda *x: np.stack(x), *each[name])
        np.testing.assert_allclose(found[name].largest, one.largest, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[OUTPUT].largest[0], np.abs(whole.logits).max(-1), rtol=1e-4)
    firsts = [ordered.index((name, 0)) for name in ("resid_pre", "attn_head", "attn_out", "mlp_out") if name in names]
    assert firsts == sorted(firsts)
    assert encoder == ordered[0][0].startswith("encoder_")


def test_layers_of_a_hybrid_are_their_own() -> None:
    """The second layer alone attends by softmax, with eight heads; the first has two."""
    model, params, inputs = model_of("gated deltanet")
    state = LayerKind(mixer=GatedDeltaNet(2, 2, key_dim=8, value_dim=8, chunk=8))
    model = replace(model, cfg=replace(model.cfg, pattern=(state, LayerKind())))
    ordered, params = order(model), lively(model.cfg)
    assert ("attn_pattern", 1) in ordered and ("attn_pattern", 0) not in ordered and ("attn_head", 0) in ordered
    heads = np.asarray(jax.jit(lambda p: summaries(model, p, inputs))(params)["attn_head"].largest)
    assert heads.shape == (2, 2, 32, 8) and not heads[0, ..., 2:].any() and heads[0, 0, 0, :2].all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["BTD", "BTNH", "BSKH", "BNTS"]), st.integers(0, 2**16), st.sampled_from([0.0, np.inf, np.nan]))
def test_any_number_that_changes_is_seen_at_its_token_and_head(letters: str, at: int, change: float) -> None:
    x = np.random.default_rng(0).normal(size=[2, 3, 4, 5][: len(letters)]).astype(np.float32)
    index = np.unravel_index(at % x.size, x.shape)
    y = x.copy()
    y[index] = change or np.nextafter(y[index], np.float32(9))  # 0: the next number there is
    before, after = (jax.device_get(summarized(letters, a)) for a in (x, y))
    by_letter = dict(zip(letters, index, strict=True))
    head = {"N", "K"} & set(letters)
    place = tuple(by_letter[n] for n in ("B", "T" if "T" in letters else "S", *head))
    assert np.argwhere(before.bits != after.bits).tolist() == [list(place)]
    assert np.isfinite(after.largest[place]) == np.isfinite(change)
    y = x.copy()  # two numbers of one token and head in each other's place
    y[index[:-1]] = np.roll(x[index[:-1]], 1)
    assert np.argwhere(before.bits != jax.device_get(summarized(letters, y)).bits).tolist() == [list(place)]


def test_what_the_mask_hides_is_no_large_logit() -> None:
    assert summaries_of("llama")["attn_logits"].largest.max() < 1e6


def test_patterns_that_are_too_large_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, params, inputs = model_of("llama")
    for most, there in ((2 * 8 * 32**2, True), (2 * 8 * 32**2 - 1, False)):
        monkeypatch.setattr(summary, "MOST_NUMBERS", most)
        found = jax.eval_shape(lambda p: summaries(model, p, inputs), params)
        assert ("attn_pattern" in found) == ("attn_logits" in found) == there and "attn_head" in found


@pytest.mark.parametrize("layer", [0, 1])
def test_the_first_of_two_models_that_differ(layer: int) -> None:
    """A head's values with a change: nothing before it differs, and it is found by layer, head and token."""
    model, params, inputs = model_of("llama")
    ordered = order(model)

    @jax.jit
    def read(params: Any, values: jax.Array) -> Any:
        edit = Add("attn_head", layers=layer, heads=2, positions=5, values=values)
        reads = Watch({name: partial(summarize, axes(name)) for name in places(model)}, {"attn_head": edit})
        return replace(model, watch=reads).hidden(params, inputs).taps

    same, other, broken = (
        jax.device_get(read(params, np.full(2, amount, np.float32))) for amount in (0.0, 1e-3, np.nan)
    )
    assert first_difference(same, same, ordered) is None and first_not_finite(same, ordered) is None
    expected = Spot("attn_head", layer, 0, 5, 2)
    assert first_difference(same, other, ordered) == first_not_finite(broken, ordered) == expected
    assert str(expected) == (
        f"attn_head (what each head has read, before the output weights) of layer {layer}, head 2, in row 0 at token 5"
    )
