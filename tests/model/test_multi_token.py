"""Modules of multi-token prediction: a plain loop over documents, and what they leave as it is."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from lm import value
from lm.model import count
from lm.model.config import ModelConfig, MultiToken
from lm.model.families import bert, t5
from lm.model.hybrids import gemma4
from lm.model.inputs import Inputs
from lm.model.multi_token import layer_config
from lm.model.transformer import Transformer
from lm.tune.pretrain import Pretrain
from tests.model.reference import (
    GEMMA2,
    GPT,
    LLAMA,
    MODELS,
    SIMPLE,
    close,
    lively,
    llama_layer,
    rms_norm,
    run,
    tokens,
    trees_close,
)

AHEAD = replace(LLAMA, multi_token=MultiToken(depth=2, weight=0.6))
LENGTHS = ((9, 8), (20,))  # of the documents of each row, behind which is padding
T = 20


def packed(cfg: ModelConfig, lengths: Any = LENGTHS, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of documents with weights of their own, as a causal objective makes them."""
    rng, B = np.random.default_rng(seed), len(lengths)
    batch = {name: np.zeros((B, T), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch["weights"] = np.zeros((B, T), np.float32)
    for i, row in enumerate(lengths):
        start = 0
        for segment, n in enumerate(row, 1):
            at, ids = slice(start, start + n), rng.integers(0, cfg.vocab, n)
            batch["tokens"][i, at], batch["targets"][i, at] = ids, np.roll(ids, -1)
            batch["segment_ids"][i, at], batch["positions"][i, at] = segment, np.arange(n)
            batch["weights"][i, start : start + n - 1] = rng.integers(0, 3, n - 1)
            start += n
    return batch


def documents(batch: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Each by itself, before a row of padding: its arrays [2, T]."""
    found = []
    for i, segment in ((i, s) for i, row in enumerate(batch["segment_ids"]) for s in sorted(set(row) - {0})):
        own = batch["segment_ids"][i] == segment
        one = {name: np.zeros((2, T), a.dtype) for name, a in batch.items()}
        for name, a in batch.items():
            one[name][0, : own.sum()] = a[i, own]
        found.append(one | {"segment_ids": np.minimum(one["segment_ids"], 1)})
    return found


@partial(jax.jit, static_argnums=(0, 3))
def gradients(model: Transformer, params: Any, batch: Any, z_loss: float = 0.0) -> Any:
    return jax.value_and_grad(Pretrain(z_loss=z_loss).build(model).loss, has_aux=True)(params, (), batch, None)


@partial(jax.jit, static_argnums=0)
def first_values(model: Transformer, key: jax.Array) -> Any:
    return model.init(key)


@partial(jax.jit, static_argnums=0)
def forward(model: Transformer, params: Any, batch: Any) -> Any:
    return Pretrain().build(model).loss(params, (), batch, None)


def losses(cfg: ModelConfig, batch: Any, **compute: Any) -> dict[str, float]:
    total, metrics = forward(Transformer(cfg, replace(SIMPLE, **compute)), lively(cfg), batch)
    return {"total": float(total)} | {name: float(x) for name, x in metrics.items()}


def looped(params: Any, ids: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> list[float]:
    """The loss of the model and of each module of a document [n] of AHEAD, in numpy."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    embedded, x = (params["stem"]["tokens"][ids] for _ in range(2))
    for i in range(AHEAD.layers):
        x = llama_layer(x, {name: stack[i] for name, stack in params["layers"]["0"].items()})
    state, found = rms_norm(x, params["head"], "norm", 1e-5), []
    for k in range(3):
        if k:
            module = params["multi_token"][str(k)]
            both = (embedded[k:], "embedding_norm"), (state[:-1], "hidden_norm")
            x = np.concatenate([rms_norm(a, module, name, 1e-5) for a, name in both], -1) @ module["projection"]
            x = llama_layer(x, {name: stack[0] for name, stack in module["layers"]["0"].items()})
            state = rms_norm(x, module["head"], "norm", 1e-5)
        logits = state @ params["head"]["kernel"]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found.append(float(-(weights[k:] * log_probs[np.arange(len(logits)), targets[k:]]).sum()))
    return found


def test_the_losses_are_those_of_a_loop_over_documents() -> None:
    batch, wanted = packed(AHEAD), np.zeros(3)
    for one in documents(batch):
        n = int(one["segment_ids"].sum())
        wanted += looped(lively(AHEAD), *(one[name][0, :n] for name in ("tokens", "targets", "weights")))
    found = losses(AHEAD, batch)
    close([found[name] for name in ("loss", "multi_token_1_loss", "multi_token_2_loss")], wanted, 1e-5)
    assert found["total"] == pytest.approx(wanted[0] + 0.6 * wanted[1:].mean(), rel=1e-6)


KINDS = {name: MODELS[name] for name in ("gpt", "alibi", "relative", "mixtral", "gemma 2", "latent", "gated deltanet")}


@pytest.mark.parametrize("name", KINDS)
def test_packed_documents_are_what_each_is_alone(name: str) -> None:
    """Of every kind of layer: no module reads or predicts across a boundary."""
    kinds = KINDS[name].pattern[:1]
    cfg = replace(KINDS[name], layers=1, first_layers=(), pattern=kinds, multi_token=MultiToken(2))
    batch = packed(cfg)
    found, alone = losses(cfg, batch), [losses(cfg, one) for one in documents(batch)]
    for measure in ("loss", "multi_token_1_loss", "multi_token_2_loss", "multi_token_2_accuracy"):
        assert found[measure] == pytest.approx(sum(one[measure] for one in alone), rel=2e-5), measure


def test_the_model_is_what_it_is_without_modules() -> None:
    """The same logits to the bit; and where they weigh nothing, the same gradients."""
    params, batch = lively(AHEAD), packed(LLAMA)
    own = {name: tree for name, tree in params.items() if name != "multi_token"}
    ids = tokens(LLAMA, 2, 9)
    np.testing.assert_array_equal(
        run(Transformer(AHEAD, SIMPLE), params, ids), run(Transformer(LLAMA, SIMPLE), own, ids)
    )
    weightless = replace(AHEAD, multi_token=MultiToken(2, weight=0))
    (total, _), found = jax.device_get(gradients(Transformer(weightless, SIMPLE), params, batch))
    (alone, _), wanted = jax.device_get(gradients(Transformer(LLAMA, SIMPLE), own, batch))
    assert total == alone and not any(np.asarray(a).any() for a in jax.tree.leaves(found.pop("multi_token")))
    trees_close(found, wanted, 1e-6)
    _, weighed = jax.device_get(gradients(Transformer(AHEAD, SIMPLE), params, batch))
    assert all(np.asarray(a).any() for a in jax.tree.leaves(weighed["multi_token"]))
    for path in (("stem", "tokens"), ("layers", "0", "query"), ("head", "kernel"), ("head", "norm_scale")):
        a, b = weighed, wanted
        for name in path:
            a, b = a[name], b[name]
        assert np.abs(a - b).max() > 1e-3, path


def test_first_values_are_those_without_modules() -> None:
    drawn, alone = (first_values(Transformer(cfg, SIMPLE), jax.random.key(3)) for cfg in (AHEAD, LLAMA))
    first, second = drawn.pop("multi_token").values()
    jax.tree.map(np.testing.assert_array_equal, drawn, alone)
    assert not np.array_equal(first["projection"], second["projection"])


@jax.jit
def _predicted(params: Any, batch: Any) -> list[jax.Array]:
    return [one.x for one in Transformer(AHEAD, SIMPLE).hidden_ahead(params, Inputs.of(batch))[1]]


def predicted(batch: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(x) for x in _predicted(lively(AHEAD), batch)]


@pytest.mark.parametrize("prefix", [False, True])
def test_a_module_sees_no_later_token(prefix: bool) -> None:
    """Not through a prefix either, which the model itself reads in both directions."""
    batch = packed(AHEAD, ((20,), (20,)))
    batch |= {"prefix": np.arange(T)[None] < [[8], [8]]} if prefix else {}
    other = batch | {"tokens": np.where(np.arange(T) == 8, (batch["tokens"] + 1) % AHEAD.vocab, batch["tokens"])}
    for k, (a, b) in enumerate(zip(predicted(batch), predicted(other), strict=True), 1):
        np.testing.assert_allclose(a[:, k:8], b[:, k:8], atol=1e-6)
        assert np.abs(a[:, 8] - b[:, 8]).min() > 1e-6


@pytest.mark.parametrize(
    "compute", [dict(remat="full", loss_chunk=7), dict(unroll=0, attention="blocked", block=4)], ids=str
)
def test_how_it_is_computed_changes_nothing(compute: dict[str, Any]) -> None:
    batch = packed(AHEAD)
    assert losses(AHEAD, batch, **compute) == pytest.approx(losses(AHEAD, batch), rel=1e-5)


def test_models_beside_one_another_learn_as_each_alone() -> None:
    """Under vmap, as the runs of a study."""
    model, batch, params = Transformer(AHEAD, SIMPLE), packed(AHEAD), [lively(AHEAD, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *params)
    both = jax.device_get(jax.vmap(lambda params: gradients(model, params, batch)[1])(stacked))
    for i, one in enumerate(params):
        trees_close(jax.tree.map(lambda a, i=i: a[i], both), gradients(model, one, batch)[1])


def test_the_router_of_a_module_weighs_as_the_module() -> None:
    cfg = MODELS["mixtral"]
    cfg = replace(cfg, ffn=replace(cfg.ffn, load_balance_weight=0.1), multi_token=MultiToken(1, weight=0.5))
    batch = packed(cfg)
    batch["weights"] /= batch["weights"].sum()
    metrics = losses(cfg, batch)
    parts = ("loss", "balance", "router_z")
    own, ahead = (sum(metrics[above + name] for name in parts) for above in ("", "multi_token_1_"))
    assert metrics["total"] == pytest.approx(own + 0.5 * ahead, rel=1e-6)


def test_the_normaliser_of_a_module_is_held_too() -> None:
    params, batch, model = lively(AHEAD), packed(AHEAD), Transformer(AHEAD, SIMPLE)
    plain, held = (jax.device_get(gradients(model, params, batch, z_loss)[1]) for z_loss in (0.0, 0.1))
    a, b = (tree["multi_token"]["2"]["projection"] for tree in (plain, held))
    assert np.abs(a - b).max() > 1e-3


def test_an_encoder_s_decoder_and_tied_models_have_them_too() -> None:
    cfg = t5(vocab=31, layers=1, width=8, heads=2, head_dim=4, mlp=8, context=48)
    cfg = replace(cfg, multi_token=MultiToken())
    batch = packed(cfg) | {"encoder_tokens": tokens(cfg, 2, 7), "encoder_segment_ids": np.ones((2, 7), np.int32)}
    other = batch | {"encoder_tokens": tokens(cfg, 2, 7, seed=1)}
    a, b = (losses(cfg, one)["multi_token_1_loss"] for one in (batch, other))
    assert np.isfinite(a) and a != b
    assert "kernel" not in lively(replace(GPT, multi_token=MultiToken()))["multi_token"]["1"]["head"]


def test_flops_and_parameters_are_counted() -> None:
    """Of a module those of a projection, a layer and the output."""
    one, D = layer_config(LLAMA), LLAMA.width
    assert layer_config(GEMMA2).pattern == GEMMA2.pattern[:1]  # of three layers the last
    assert layer_config(replace(GEMMA2, layers=4)).pattern == GEMMA2.pattern[1:]
    layer = count.flops_per_row(one, T) - 6 * LLAMA.vocab * D * T
    each = layer + 6 * (2 * D * D + LLAMA.vocab * D) * T
    assert count.flops_per_row(AHEAD, T) == count.flops_per_row(LLAMA, T) + 2 * each
    stack = count.parameters(one) - 2 * LLAMA.vocab * D - D
    assert count.parameters(AHEAD) == count.parameters(LLAMA) + 2 * (stack + 2 * D * D + 3 * D)
    frozen = frozenset({"multi_token/1/projection", "multi_token/2/layers/0/out"})
    saved = 2 * (2 * D * D + D * D) * T
    assert count.flops_per_row(AHEAD, T) - count.flops_per_row(AHEAD, T, frozen=frozen) == saved


def test_earlier_data_are_what_they_were() -> None:
    """A model without modules has no trace of them, in its data and so in its fingerprint."""
    assert "multi_token" not in value.plain(LLAMA) and value.plain(AHEAD)["multi_token"]["depth"] == 2
    for cfg in (LLAMA, AHEAD):
        assert value.build(ModelConfig, value.plain(cfg)) == cfg
    with pytest.raises(ValueError, match="only a causal model with an output over the vocabulary predicts tokens"):
        replace(bert(vocab=31, layers=1, width=8, heads=2, context=8, mlp=8), multi_token=MultiToken())
    sizes = dict(vocab=31, width=8, heads=2, kv_heads=1, mlp=8, head_dim=4, full_head_dim=4, context=8, every=2)
    for own in (dict(layers=4, shared=2), dict(layers=2, per_layer=4)):
        with pytest.raises(ValueError, match="model.multi_token: a module is one layer alone, and layers here read"):
            replace(gemma4(**sizes, **own), multi_token=MultiToken())
    with pytest.raises(ValueError, match=r"model\.multi_token\.depth=0"):
        MultiToken(0)


def test_finished_models_are_given_fresh_modules() -> None:
    base, key = lively(LLAMA), jax.random.key(1)
    added = Transformer(AHEAD, SIMPLE).with_scores(base, key)
    fresh = first_values(Transformer(AHEAD, SIMPLE), key)["multi_token"]
    jax.tree.map(np.testing.assert_array_equal, added.pop("multi_token"), fresh)
    jax.tree.map(np.testing.assert_array_equal, added, base)
    own = lively(AHEAD)
    jax.tree.map(np.testing.assert_array_equal, Transformer(AHEAD, SIMPLE).with_scores(own, key), own)
