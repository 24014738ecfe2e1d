"""Adapters: merged = unmerged in every family, nothing moves at first, what is frozen stays, meshes agree."""

import re
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model import count
from lm.model.compute import Compute
from lm.model.families import t5
from lm.model.inputs import Inputs
from lm.model.quantized import STORED, dense
from lm.model.transformer import Transformer
from lm.sharding.batches import place_batch
from lm.sharding.mesh import make_mesh
from lm.train.state import new_state
from lm.train.step import build_step, state_shardings
from lm.tune.lora import DoRA, LoRA
from lm.tune.paths import alternatives, axes_of, by_path, is_matrix, nested, select
from lm.tune.pretrain import Pretrain
from lm.tune.trains import All, Freeze, Only
from tests.model.reference import GPT, LLAMA, MODELS, SIMPLE, lively, trees_close
from tests.train.test_step import ADAMW, batch
from tests.train.test_step import LLAMA as SMALL

MIXTRAL = MODELS["mixtral"]
T5 = t5(vocab=29, layers=2, width=12, heads=2, mlp=10, head_dim=6, context=24)
FAMILIES = {**MODELS, "t5": T5, "tied": replace(LLAMA, tied=True)}
QUICK = ("gpt", "tied", "mixtral")  # tied, tied with rotary positions, and stacked experts
EVERYWHERE = "layers/.*|stem/tokens"


def wrapped(cfg: Any, trains: Any, compute: Compute = SIMPLE) -> Any:
    return trains.wrap(Pretrain().build(Transformer(cfg, compute)))


def disturbed(tree: Any) -> Any:
    """Factors as training may leave them; on the host, where drawing them is no program."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1) * rng.standard_normal(x.shape, np.float32), tree)


def inputs(cfg: Any) -> Inputs:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 9)))
    return Inputs(tokens, encoder=Inputs(tokens[:, ::-1])) if cfg.has_encoder else Inputs(tokens)


SLOW = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("kind", [LoRA, pytest.param(DoRA, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", SLOW)
def test_merged_is_unmerged(family: str, kind: Any) -> None:
    cfg = FAMILIES[family]
    learner, model = wrapped(cfg, kind(rank=2, where=EVERYWHERE)), Transformer(cfg, SIMPLE)
    params, frozen = jax.jit(learner.init)(jax.random.key(0), lively(cfg))
    params = disturbed(params)

    @jax.jit
    def every(params: Any, frozen: Any) -> Any:
        """Logits unmerged, merged and of the base; and of the first two, for some families, gradients."""
        ways = (lambda p: learner.join(p, frozen["base"]), lambda p: learner.model_params(p, frozen))

        def loss(p: Any, read: Any) -> Any:
            logits = model(read(p), inputs(cfg))
            return (logits**2).sum(), logits

        read = jax.grad(loss, has_aux=True) if family in QUICK else loss
        found, logits = zip(*(read(params, way) for way in ways), strict=True)
        return *logits, model(lively(cfg), inputs(cfg)), found

    unmerged, merged, base, gradients = jax.device_get(every(params, frozen))
    if family in QUICK:
        trees_close(*gradients, 1e-4)
    assert np.abs(merged - base).max() > 0.1
    np.testing.assert_allclose(unmerged, merged, rtol=1e-5, atol=1e-5 * np.abs(merged).max())
    shapes = jax.eval_shape(learner.model_params, params, frozen)
    assert jax.tree.structure(shapes) == jax.tree.structure(model.shapes())


@pytest.mark.parametrize("compute", [SIMPLE, replace(SIMPLE, flat="yes")], ids=["products", "flat"])
def test_the_first_loss_is_the_base_s(compute: Compute) -> None:
    learner, one = wrapped(SMALL, LoRA(rank=2, where="layers/.*|stem/tokens|kernel"), compute), batch(0)
    start = lively(SMALL)
    params, frozen = jax.jit(learner.init)(jax.random.key(0), start)
    adapted, plain = jax.jit(learner.loss), jax.jit(learner.learner.loss)
    assert float(adapted(params, frozen, one, None)[0]) == float(plain(start, (), one, None)[0])


def test_factors_have_the_scale_of_their_papers() -> None:
    a, b = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)
    kinds = {LoRA(rank=4, alpha=8.0): 2.0, LoRA(rank=4, alpha=8.0, rslora=True): 4.0}

    @jax.jit
    def made(factors: Any, key: Any) -> Any:
        merged = [kind.adapt(jnp.zeros((3, 5)), factors, ("embed", "mlp"), None).merged for kind in kinds]
        fresh = LoRA(rank=4).factors(jnp.zeros((2, 9, 5)), ("layers", "embed", "mlp"), key)
        return merged, fresh, LoRA(rank=4).factors(jnp.zeros((9, 5)), ("vocab", "embed"), key)

    merged, fresh, table = jax.device_get(made({"lora_a": a, "lora_b": b}, jax.random.key(0)))
    for found, scale in zip(merged, kinds.values(), strict=True):
        np.testing.assert_allclose(found, scale * a @ b)
    assert not fresh["lora_b"].any() and 0.2 < np.abs(fresh["lora_a"]).max() <= 1 / 3
    assert not table["lora_a"].any() and table["lora_b"].std() > 0.5


def test_dora_is_the_paper_s() -> None:
    """m (W + s A B) / |W + s A B|, by columns; the norm is constant in gradients; dropout is in both terms."""
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 5), (2, 3, 6)))
    kind, axes = DoRA(rank=2, alpha=3.0, dropout=0.5), ("embed", "mlp")
    factors = disturbed(jax.jit(lambda w: kind.factors(w, axes, jax.random.key(0)))(w))

    @jax.jit
    def product(factors: Any, key: Any) -> jax.Array:
        one, linear = kind.adapt(w, factors, axes, key), lambda x, w, contract=1: x @ w
        return (
            one.product(x, x @ w, linear)
            if key is not None
            else one.learn(x, x @ jax.lax.stop_gradient(one.merged), linear)
        )

    @jax.jit
    def expected(factors: Any, seen: jax.Array) -> jax.Array:
        change = 1.5 * factors["lora_a"] @ factors["lora_b"]
        ratio = factors["magnitude"] / jax.lax.stop_gradient(jnp.linalg.norm(w + change, axis=0))
        return x @ w + (ratio - 1) * (seen @ w) + ratio * (seen @ change)

    np.testing.assert_allclose(product(factors, None), expected(factors, x), rtol=1e-4, atol=1e-5)
    seen = jnp.where(jax.random.bernoulli(jax.random.key(3), 0.5, x.shape), 2 * x, 0)
    np.testing.assert_allclose(product(factors, jax.random.key(3)), expected(factors, seen), rtol=1e-4, atol=1e-5)
    for key, read in ((None, x), (jax.random.key(3), seen)):
        own = jax.jit(jax.grad(lambda f, key=key: (product(f, key) ** 2).sum()))(factors)
        paper = jax.jit(jax.grad(lambda f, read=read: (expected(f, read) ** 2).sum()))(factors)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), own, paper)


def test_dropout_is_of_training_alone_and_differs_by_layer() -> None:
    learner, one = wrapped(SMALL, LoRA(rank=2, dropout=0.5)), batch(0)
    params, frozen = jax.jit(learner.init)(jax.random.key(0), lively(SMALL))
    params, loss = disturbed(params), jax.jit(learner.loss)
    still, *drawn = (float(loss(params, frozen, one, key)[0]) for key in (None, jax.random.key(0), jax.random.key(1)))
    assert len({still, *drawn}) == 3
    assert float(jax.jit(learner.evaluate)(params, frozen, one)["loss"]) == still
    keys = learner.join(params, frozen["base"], jax.random.key(0))["layers"]["0"]["query"].key
    assert keys.shape == (SMALL.layers,) and (jax.random.key_data(keys[0]) != jax.random.key_data(keys[1])).any()


def test_dropout_of_what_is_no_layer_s_product_is_refused() -> None:
    for cfg, where in ((MIXTRAL, "gate"), (LLAMA, "stem/tokens")):
        learner = wrapped(cfg, LoRA(rank=2, where=where, dropout=0.1))

        def read(key: Any, base: Any, learner: Any = learner, cfg: Any = cfg) -> Any:
            params, frozen = learner.init(key, base)
            return learner.model(learner.join(params, frozen["base"], key), inputs(cfg))

        with pytest.raises(ValueError, match="no dropout: set trains.dropout=0"):
            jax.eval_shape(read, jax.random.key(0), lively(cfg))


@cache
def start_of(trains: Any) -> Any:
    """(params, frozen) of the small Llama, on the host."""
    return jax.device_get(jax.jit(wrapped(SMALL, trains).init)(jax.random.key(0), lively(SMALL)))


def trained(trains: Any, mesh: dict[str, int] | None) -> Any:
    """(losses of three steps, the state before and after) of the small Llama."""
    compute = replace(SIMPLE, loss_chunk=4)
    learner = wrapped(SMALL, trains, compute)
    over = make_mesh(mesh) if mesh else make_mesh({"data": 1}, jax.devices()[:1])
    chain = ADAMW.build(3, learner.axes())
    params, frozen = start_of(trains)
    state = jax.device_put(new_state(params, chain, frozen=frozen), state_shardings(learner, chain, over)[1])
    before, step, losses = jax.device_get(state), build_step(learner, chain, over), []
    for n in range(3):
        state, metrics = step(state, place_batch(batch(n), over))
        losses.append(float(metrics["loss"]))
    return losses, before, state


@pytest.mark.parametrize("trains", [LoRA(rank=2, where="query|value|mlp|stem/tokens"), Only("mlp_in|head/.*")], ids=str)
def test_on_a_mesh_as_on_one_device_and_what_is_frozen_stays(trains: Any) -> None:
    alone, before, after = trained(trains, None)
    for start, end in zip(jax.tree.leaves(before.frozen), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(start, end)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), before.params, after.params)
    assert min(jax.tree.leaves(moved)) > 0
    sizes = {x.shape for x in jax.tree.leaves(after.opt_state) if x.ndim}
    assert sizes <= {x.shape for x in jax.tree.leaves(after.params)}
    losses, _, state = trained(trains, {"fsdp": 4, "tensor": 2})
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    key = state.frozen["base"]["layers"]["0"]["key"]
    assert key.sharding.spec[1:3] == (("fsdp", "expert", "context"), "tensor")


def test_weights_gradients_of_what_is_frozen_are_not_computed() -> None:
    """A step has two thirds of the products of a full one, and the small ones."""

    def flops(trains: Any) -> float:
        learner = wrapped(
            replace(SMALL, width=64, ffn=replace(SMALL.ffn, mlp=512)), trains, replace(SIMPLE, loss_chunk=4)
        )
        shapes = jax.eval_shape(learner.init, jax.random.key(0))
        step = jax.jit(lambda p, f, b: jax.grad(lambda p: learner.loss(p, f, b, None)[0])(p))
        return float(step.lower(*shapes, batch(0)).compile().cost_analysis()["flops"])

    assert flops(LoRA(rank=1)) < 0.72 * flops(All())


# ---------------------------------------------------------------- a base in fewer bits


BASES = [pytest.param(name, marks=() if name == "nf4" else pytest.mark.slow) for name in ("bfloat16", "int8", "nf4")]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_a_base_in_fewer_bits_is_the_matrix_that_it_stands_for(base: str, kind: Any) -> None:
    """Loss, gradients of the factors, and what is merged, as with a float32 base of those values."""
    few, one = wrapped(SMALL, kind(rank=2, base=base)), batch(0)
    params, frozen = jax.jit(few.init)(jax.random.key(0), lively(SMALL))
    kept = jax.jit(lambda x: STORED[base].read(x).dense)(frozen["base"]["layers"]["0"]["query"])
    stands_for = lively(SMALL) | {"layers": dequantized(few, frozen)}
    np.testing.assert_array_equal(stands_for["layers"]["0"]["query"], kept)
    assert 0 < float(np.abs(np.asarray(kept) - np.asarray(lively(SMALL)["layers"]["0"]["query"])).max()) < 1
    same = wrapped(SMALL, kind(rank=2))
    begun, whole = jax.jit(same.init)(jax.random.key(0), stands_for)
    jax.tree.map(np.testing.assert_array_equal, begun, params)
    params = disturbed(params)

    @partial(jax.jit, static_argnums=0)
    def read(learner: Any, params: Any, frozen: Any) -> Any:
        loss = jax.value_and_grad(lambda p: learner.loss(p, frozen, one, None)[0])
        return *loss(params), learner.model_params(params, frozen)

    (loss, gradients, merged), (expected, theirs, wanted) = read(few, params, frozen), read(same, params, whole)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    trees_close(gradients, theirs, 1e-5)
    trees_close(merged, wanted, 1e-6)


def dequantized(learner: Any, frozen: Any) -> Any:
    """The layers of what is frozen, as arrays."""
    storage, layers = learner.adapter.storage, frozen["base"]["layers"]

    @jax.jit
    def read(layers: Any) -> Any:
        return {
            slot: {name: dense(storage.read(x)) if isinstance(x, dict) else x for name, x in one.items()}
            for slot, one in layers.items()
        }

    return read(layers)


def test_four_bits_take_an_eighth_of_the_memory() -> None:
    wide = replace(SMALL, width=64, ffn=replace(SMALL.ffn, mlp=128))
    sizes = {
        base: count.tree_bytes(jax.eval_shape(wrapped(wide, LoRA(where="mlp", base=base)).init, jax.random.key(0))[1])
        for base in ("float32", "bfloat16", "int8", "nf4")
    }
    weights = 2 * 3 * 64 * 128
    saved = {base: (sizes["float32"] - size) / weights for base, size in sizes.items()}
    assert saved["bfloat16"] == 2 and saved["int8"] == pytest.approx(3, abs=0.1) and saved["nf4"] == 4 - 0.5 - 4 / 64


@pytest.mark.slow
def test_four_bits_lie_on_a_mesh_and_stay() -> None:
    alone, before, after = trained(LoRA(rank=2, base="nf4"), None)
    jax.tree.map(np.testing.assert_array_equal, before.frozen, jax.device_get(after.frozen))
    losses, _, state = trained(LoRA(rank=2, base="nf4"), {"fsdp": 2, "tensor": 2, "data": 2})
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    codes = state.frozen["base"]["layers"]["0"]["query"]["codes"]
    assert codes.dtype == jnp.uint8 and codes.sharding.spec[1:3] == (("fsdp", "expert", "context"), "tensor")


def test_a_base_that_is_not_known_or_does_not_pack_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^trains.base='nf5': did you mean nf4"):
        LoRA(base="nf5")
    odd = replace(SMALL, ffn=replace(SMALL.ffn, mlp=23))
    with pytest.raises(ValueError, match="trains.base='nf4' keeps two weights in a byte, and the last axis of layers/"):
        LoRA(base="nf4").check(odd)
    LoRA(base="nf4", where="query").check(odd)
    LoRA(base="int8").check(odd)


# ---------------------------------------------------------------- choices


def test_parameters_are_chosen_by_their_paths() -> None:
    axes = axes_of(LLAMA)
    chosen = {
        "query|value": {"layers/0/query", "layers/0/value"},
        "layers/.*/mlp_in": {"layers/0/gate", "layers/0/up"},
        "mlp_out": {"layers/0/down"},
        "mlp": {"layers/0/gate", "layers/0/up", "layers/0/down"},
        "layers/0/(key|out)": {"layers/0/key", "layers/0/out"},
        "head/.*": {"head/kernel", "head/norm_scale"},
    }
    for where, expected in chosen.items():
        assert select("where", where, axes) == expected, where
    assert select("where", "head/.*", axes, is_matrix) == {"head/kernel"}
    assert "encoder/layers/0/query" in select("where", "layers/0/query", axes_of(T5))
    assert nested(by_path({"a": {"b": 1, "c": {"d": 2}}})) == {"a": {"b": 1, "c": {"d": 2}}}


def test_alternatives_are_those_of_the_top_level() -> None:
    assert alternatives(r"a|(b|c)d|[|]|\|e") == ["a", "(b|c)d", "[|]", r"\|e"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("query|querry", "trains.where: 'querry' matches no matrix: did you mean query"),
        ("attention_norm_scale", "trains.where: 'attention_norm_scale' matches no matrix: "),
        ("ery", "trains.where: 'ery' matches no matrix: did you mean query or key or kernel? known: down, gate, "),
        ("(", "trains.where='(' is no regular expression: "),
        ("", "trains.where: '' matches no matrix: known: "),
    ],
)
def test_a_path_that_matches_nothing_names_near_ones(where: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        LoRA(where=where).check(LLAMA)
    if "|" in where:
        with pytest.raises(ValueError, match="'querry' matches no parameter"):
            Only(where).check(LLAMA)


def test_what_is_frozen_has_no_gradient_and_the_rest_has() -> None:
    learner = wrapped(GPT, Freeze("layers/.*"))
    params, frozen = jax.eval_shape(learner.init, jax.random.key(0))
    assert set(params) == {"stem", "head"} and set(frozen["base"]) == {"layers"}
    assert Freeze("query").frozen(LLAMA) == {path for path in axes_of(LLAMA) if path.endswith("/query")}
    with pytest.raises(ValueError, match="trains.where='.*' freezes every parameter: choose fewer"):
        Freeze(".*").check(LLAMA)


def test_what_is_full_is_trained_itself() -> None:
    learner = wrapped(GPT, LoRA(rank=2, where="layers/.*", full="head/.*|query"))
    params, frozen = jax.eval_shape(learner.init, jax.random.key(0))
    assert set(params["head"]) == {"norm_scale", "norm_bias"} and "head" not in frozen["base"]
    assert not isinstance(params["layers"]["0"]["query"], dict) and set(params["layers"]["0"]["key"]) == {
        "lora_a",
        "lora_b",
    }
    sizes = sum(x.size for x in jax.tree.leaves(params))
    one = LoRA(rank=2, where="layers/.*", full="head/.*|query")
    itself = sum(x.size for path, x in by_path(learner.learner.model.shapes()).items() if path not in one.frozen(GPT))
    assert sizes == itself + one.added(GPT)
