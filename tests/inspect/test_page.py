"""What a page shows, against what it is by definition."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.inspect import page
from lm.inspect.edits import Zero
from lm.inspect.look import look
from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.delta import GatedDeltaNet
from lm.model.families import bert, gpt, llama, t5
from lm.model.inputs import Inputs
from lm.model.positions import Rotary
from lm.model.transformer import Params, Transformer
from tests.inspect.circuit import CLEAN, CORRUPTED, circuit
from tests.model.reference import lively, run

EXACT = Compute(dtype="float32", matmul="float32").resolve()
SIZES = dict(vocab=16, layers=2, width=8, heads=2, mlp=12, context=12)
TOKENS = jnp.array([[3, 1, 4, 1, 5, 9]])
PLACES = ("attn_pattern", "resid_pre", "resid_mid", "resid_post")
MODEL = Transformer(llama(**SIZES), EXACT)


def params_of(model: Transformer) -> Params:
    return lively(model.cfg)


@pytest.fixture(scope="module")
def params() -> Params:
    return params_of(MODEL)


def test_one_look_has_the_streams_the_patterns_and_the_end(params: Params) -> None:
    seen = page.observe(MODEL, params, Inputs(TOKENS), {"": [0]})
    taps = jax.jit(partial(look, MODEL, taps=PLACES))(params, TOKENS).taps
    (one,) = page.attentions(MODEL.cfg, seen, {"": [0]})
    dense = np.zeros((2, 2, 6, 6))
    np.put_along_axis(dense, one.kept.keys.astype(int), one.kept.weights / 255, -1)
    dense[..., 0] = one.kept.sinks[..., 0] / 255
    np.testing.assert_allclose(dense, taps["attn_pattern"][:, 0], atol=0.5 / 255 + 1e-6)
    before, after = np.asarray(taps["resid_pre"][1, 0, 3]), np.asarray(taps["resid_mid"][1, 0, 3])
    attention, feed = page.moved(seen)
    assert (attention["what"], feed["what"]) == ("attention", "feed-forward")
    assert attention["share"][1][3] == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), abs=1e-3)
    np.testing.assert_allclose(
        jax.jit(MODEL.logits)(params, seen["last"]), run(MODEL, params, TOKENS), rtol=1e-5, atol=1e-5
    )


def test_the_output_is_read_in_blocks(params: Params) -> None:
    """More places than a block has, and none but those."""
    tokens = jnp.arange(4 * 12).reshape(4, 12) % 16
    x = np.asarray(jax.jit(MODEL.hidden)(params, tokens).x).reshape(48, 8)
    ids, best, wanted = page.read_out(MODEL, params, x, 3, np.arange(48) % 16)
    known = np.asarray(jax.nn.softmax(run(MODEL, params, tokens))).reshape(48, 16)
    np.testing.assert_allclose(best, np.sort(known)[:, :-4:-1], rtol=1e-4)
    np.testing.assert_array_equal(ids[:, 0], known.argmax(-1))
    np.testing.assert_allclose(wanted, known[np.arange(48), np.arange(48) % 16], rtol=1e-4)


def test_neighbours_are_the_nearest_others() -> None:
    table = jnp.array([[1.0, 0], [2, 0.1], [0, 1], [-1, 0]])
    near = page.neighbours(table, [2, 0, 0], 2)
    assert list(near) == [0, 2] and [id for id, _ in near[0]] == [1, 2]
    assert near[0][0][1] == pytest.approx(2 / np.hypot(2, 0.1), abs=1e-4)


WINDOWED = llama(**SIZES | dict(layers=3))
WINDOWED = replace(WINDOWED, pattern=(LayerKind(window=2), LayerKind(positions=Rotary(100.0))))


LEARNED = gpt(**{name: size for name, size in SIZES.items() if name != "mlp"})


@pytest.mark.parametrize("cfg", [WINDOWED, pytest.param(LEARNED, marks=pytest.mark.slow)], ids=["windows", "learned"])
def test_without_positions_and_mask_no_order_is_seen(cfg: ModelConfig) -> None:
    model = Transformer(cfg, EXACT)
    own, mask, neither = page.order(model, params_of(model), Inputs(TOKENS), [5, 0, 3, 1, 4, 2])
    assert "mask alone" in mask["label"] and np.shape(own["apart"]) == (cfg.layers + 1, 6)
    assert np.max(neither["apart"]) < 1e-3 < 0.05 < np.max(mask["apart"]) != np.max(own["apart"])
    same = page.order(model, params_of(model), Inputs(TOKENS), list(range(6)))
    assert max(np.max(line["apart"]) for line in same) == 0


def test_a_state_reads_in_order_whatever_is_left_out() -> None:
    state = LayerKind(mixer=GatedDeltaNet(2, 2, key_dim=8, value_dim=8, chunk=4))
    variants = page.order_variants(replace(llama(**SIZES), pattern=(state, LayerKind())))
    assert list(variants) == ["the model", "without positions: the mask and the states"]


def test_in_both_directions_there_is_no_mask_to_leave_out() -> None:
    one, other = Transformer(bert(**SIZES), EXACT), Transformer(t5(**SIZES, head_dim=4), EXACT)
    inputs = Inputs(TOKENS[:, :1], encoder=Inputs(TOKENS, segments=jnp.ones_like(TOKENS)))
    for model, given in ((one, Inputs(TOKENS)), (other, inputs)):
        own, without = page.order(model, params_of(model), given, [1, 0, 2, 3, 5, 4])
        assert np.max(own["apart"]) > 0.01 > 1e-3 > np.max(without["apart"])


def test_words_in_another_order() -> None:
    pieces = ["<s>", "I", " ate", " the", " ca", "ke", "."]
    assert page.words(pieces, [0]) == [[1], [2], [3], [4, 5], [6]]
    assert page.other_order(pieces, [0], "The cake ate I.") == [0, 3, 4, 5, 2, 1, 6]
    shuffled = page.other_order(pieces, [0])
    assert sorted(shuffled) == list(range(7)) != shuffled and shuffled[0] == 0
    assert shuffled.index(5) == shuffled.index(4) + 1
    assert page.other_order(["a", " b"], []) == [1, 0]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("the dog ate I", "has 'dogatei', where"), ("The cake ate", r"lacks i \.: expected the same words")],
)
def test_other_words_are_refused(wanted: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        page.other_order(["I", " ate", " the", " cake", "."], [], wanted)


def test_a_head_that_adds_nothing() -> None:
    """Each by itself, in the order asked for, of the circuit where head 0 of each layer carries the answer."""
    model, params = circuit()
    heads = [("attn_head", 1, 1), ("attn_head", 0, 0), ("attn_head", 1, 0)]
    found = page.without_heads(model, params, Inputs(jnp.asarray(CLEAN)), heads, 5)
    now = np.asarray(jax.nn.softmax(run(model, params, CLEAN)[0, 5]))
    np.testing.assert_allclose(found[0], now, rtol=1e-5)
    np.testing.assert_allclose(found[2], 1 / 8, rtol=1e-5)
    alone = jax.jit(partial(look, model, edits=[Zero("attn_head", layers=0, heads=0)]))(params, CLEAN).logits[0, 5]
    np.testing.assert_allclose(found[1], jax.nn.softmax(alone), rtol=1e-4)
    assert page.divergence(now, now) == 0 < page.divergence(now, found[2])


def test_patching_finds_what_carries_the_difference() -> None:
    model, params = circuit()
    grids = page.patched(model, params, jnp.asarray(CORRUPTED), jnp.asarray(CLEAN), 5, (3, 1))
    np.testing.assert_allclose(grids["heads"], [[1, 0], [1, 0]], atol=1e-3)
    tokens = np.array(grids["tokens"])
    assert tokens.shape == (2, 6) and tokens[0, 2] == pytest.approx(1, abs=1e-3) and tokens[1, 5] == pytest.approx(1)


def test_probabilities_that_vanish_diverge_finitely() -> None:
    kl = partial(page.divergence, np.array([0.5, 0.5, 0]))
    assert kl(np.array([0.25, 0.5, 0.25])) == pytest.approx(0.5 * np.log(2), abs=1e-4)
    assert np.isfinite(kl(np.array([0, 1, 0])))
