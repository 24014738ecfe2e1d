"""Encoders: alone (BERT) and before a decoder (T5)."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.t5 import experiment as t5_small
from experiments.t5 import t5_base
from lm.data.denoise import UL2, SpanCorruption
from lm.data.objective import Objective
from lm.decode.generate import generate
from lm.decode.sampling import Sampling
from lm.experiment import published
from lm.model import count
from lm.model.families import bert, llama, t5, t5_v1_1
from lm.model.inputs import Inputs
from lm.model.parametrisation import MuP
from lm.model.transformer import Transformer
from lm.plan.compile import batch_shapes
from lm.tune.pretrain import Pretrain
from tests.model.reference import LLAMA, SIMPLE, close, extend, lively, run, tokens, trees_close
from tests.tiny import experiment

BERT = bert(vocab=31, layers=2, width=12, heads=3, mlp=20, context=24)
T5 = t5(vocab=31, layers=2, width=12, heads=3, head_dim=6, mlp=20, context=24, buckets=8, max_distance=16)
OWN = replace(  # an encoder of another width, vocabulary and depth, with an embedding of its own
    llama(vocab=31, layers=2, width=12, heads=3, mlp=20, context=24),
    encoder=bert(vocab=37, layers=3, width=16, heads=2, mlp=24, context=24),
)
GATED = t5_v1_1(vocab=31, layers=2, width=12, heads=3, head_dim=6, mlp=20, context=24, encoder_layers=3)


@partial(jax.jit, static_argnums=0)
def both(model: Transformer, params: Any, source: Any, target: Any, seen: Any = None, segments: Any = None) -> Any:
    return model(params, Inputs(target, segments=segments, encoder=Inputs(source, segments=seen)))


def test_every_token_of_an_encoder_sees_every_other() -> None:
    model, params, ids = Transformer(BERT, SIMPLE), lively(BERT), tokens(BERT, 1, 9)
    before = run(model, params, ids)
    changed = np.where(np.arange(9) == 8, (ids + 1) % 31, ids)
    assert (np.abs(run(model, params, changed) - before).max(-1) > 1e-4).all()


def test_token_types_are_added() -> None:
    model, params, ids = Transformer(BERT, SIMPLE), lively(BERT), tokens(BERT, 1, 9)
    np.testing.assert_array_equal(run(model, params, ids), run(model, params, ids, token_types=np.zeros_like(ids)))
    assert np.abs(run(model, params, ids, token_types=np.ones_like(ids)) - run(model, params, ids)).max() > 0.01


@pytest.mark.parametrize("cfg", [BERT, LLAMA], ids=["bert", "a norm after the last layer"])
def test_the_next_sentence_is_told_from_the_first_token(cfg: Any) -> None:
    able = replace(cfg, output=replace(cfg.output, next_sentence=True))
    model, params = Transformer(able, SIMPLE), lively(able)
    x = np.random.default_rng(0).standard_normal((3, 5, cfg.width)).astype(np.float32)
    head = {name: np.asarray(value, np.float64) for name, value in params["head"].items()}
    first = x[:, 0].astype(np.float64)
    if cfg is LLAMA:
        first = head["norm_scale"] * first / np.sqrt((first**2).mean(-1, keepdims=True) + cfg.norm.eps)
    pooled = np.tanh(first @ head["pooler"] + head["pooler_bias"])
    got, logits = jax.jit(lambda p: (model.next_sentence(p, x), model.logits(p, x)))(params)
    assert got.dtype == jnp.float32
    close(got, pooled @ head["next_sentence"] + head["next_sentence_bias"])
    np.testing.assert_array_equal(logits, jax.jit(lambda p: Transformer(cfg, SIMPLE).logits(p, x))(params))


def test_an_output_for_the_next_sentence_leaves_the_other_parameters() -> None:
    able = replace(BERT, output=replace(BERT.output, next_sentence=True))
    plain, more = (jax.jit(Transformer(cfg, SIMPLE).init)(jax.random.key(0)) for cfg in (BERT, able))
    added = {name: more["head"].pop(name) for name in set(more["head"]) - set(plain["head"])}
    jax.tree.map(np.testing.assert_array_equal, more, plain)
    assert {name: value.shape for name, value in added.items()} == {
        "pooler": (12, 12),
        "pooler_bias": (12,),
        "next_sentence": (12, 2),
        "next_sentence_bias": (2,),
    }
    assert np.abs(np.corrcoef(added["pooler"].ravel(), plain["head"]["transform"].ravel())[0, 1]) < 0.5
    axes = Transformer(able, SIMPLE).axes()["head"]
    assert all(len(axes[name]) == value.ndim for name, value in added.items())
    with pytest.raises(ValueError, match="no output for the next sentence: set model.output.next_sentence=True"):
        Transformer(BERT, SIMPLE).next_sentence(plain, jnp.zeros((1, 1, 12)))


@pytest.mark.parametrize("cfg", [T5, GATED, OWN], ids=["1.0", "1.1", "own"])
def test_padding_of_the_encoder_changes_nothing(cfg: Any) -> None:
    model, params = Transformer(cfg, SIMPLE), lively(cfg)
    source, target = tokens(cfg, 2, 7), tokens(cfg, 2, 6, seed=1)
    wide = np.pad(source, ((0, 0), (0, 4)), constant_values=3)
    seen = (np.arange(11) < 7).astype(np.int32) * np.ones((2, 1), np.int32)
    close(both(model, params, wide, target, seen), both(model, params, source, target))


def test_packed_pairs_are_unpacked() -> None:
    """Two inputs and their two targets in one row: each target sees its own input alone."""
    model, params = Transformer(T5, SIMPLE), lively(T5)
    source, target = tokens(T5, 1, 9), tokens(T5, 1, 7, seed=1)
    inputs = np.array([[1] * 5 + [2] * 4], np.int32)
    outputs = np.array([[1] * 3 + [2] * 4], np.int32)
    together = np.asarray(both(model, params, source, target, inputs, outputs))[0]
    others, behind = tokens(T5, 2, 9, seed=2), tokens(T5, 2, 7, seed=3)  # behind each, and not seen
    others[0, :5], others[1, :4], behind[0, :3], behind[1, :4] = (
        source[0, :5],
        source[0, 5:],
        target[0, :3],
        target[0, 3:],
    )
    apart = np.asarray(both(model, params, others, behind, np.arange(9) < [[5], [4]]))
    close(together[:3], apart[0, :3])
    close(together[3:], apart[1, :4])


@pytest.mark.parametrize("cfg", [T5, GATED, OWN], ids=["1.0", "1.1", "own"])
def test_cached_is_full(cfg: Any) -> None:
    model, params = Transformer(cfg, SIMPLE), lively(cfg)
    source, target = tokens(T5, 2, 7), tokens(cfg, 2, 6, seed=1)
    first = Inputs(target[:, :3], encoder=Inputs(source))
    logits, cache = extend(model, params, model.empty_cache(2, 9, 7), first)
    parts = [logits]
    for t in range(3, 6):
        logits, cache = extend(model, params, cache, Inputs(target[:, t : t + 1]))
        parts.append(logits)
    close(np.concatenate(parts, axis=1), both(model, params, source, target), 3e-5)


def test_greedy_decoding_reads_the_encoder() -> None:
    model, params, source = Transformer(T5, SIMPLE), lively(T5), tokens(T5, 2, 7)
    found = generate(model, params, [[0], [0]], 5, sampling=Sampling(temperature=0.0), encoder=Inputs(source))
    ids = np.zeros((2, 6), np.int32)  # what is behind a token is not seen
    for t in range(5):
        ids[:, t + 1] = np.argmax(np.asarray(both(model, params, source, ids))[:, t], -1)
    assert found == ids[:, 1:].tolist()


def test_an_encoder_of_its_own_is_that_model() -> None:
    """Its output is what the model alone gives after its last layer, from the same parameters."""
    model, params, source = Transformer(OWN, SIMPLE), lively(OWN), tokens(OWN.encoder, 2, 7)
    alone = {"stem": params["encoder"]["stem"], "layers": params["encoder"]["layers"], "head": {}}
    close(jax.jit(model.encode)(params, source), jax.jit(Transformer(OWN.encoder, SIMPLE).hidden)(alone, source).x)
    assert params["layers"]["0"]["cross_key"].shape == (2, 16, 3, 4)
    assert count.parameters(OWN) == sum(leaf.size for leaf in jax.tree.leaves(params))
    layer, decoder = (6 * (4 * w * w + 2 * w * f) + 12 * w * 7 for w, f in ((16, 24), (12, 0)))
    decoder += 6 * 3 * 12 * 20 + 6 * 2 * (12 * 12 + 16 * 12) + 12 * 12 * 7  # a gate, and cross-attention
    assert count.flops_per_token(OWN, 7) == 3 * layer + 2 * decoder + 6 * 31 * 12


def test_flops_of_a_row_are_those_of_what_each_side_reads() -> None:
    """Keys and values of cross-attention are made for the encoder's tokens, and looked at by the decoder's."""
    S, T, D, A, F = 7, 3, 12, 18, 20
    layer = lambda n: n * (6 * (4 * D * A + 2 * D * F) + 12 * A * n)  # noqa: E731 - with self-attention, of n tokens
    cross = 6 * 2 * D * A * (T + S) + T * 12 * A * S
    assert count.flops_per_row(T5, T, S) == 2 * (layer(S) + layer(T) + cross) + 6 * 31 * D * T
    assert count.flops_per_row(T5, T, T) == count.flops_per_token(T5, T) * T


@pytest.mark.parametrize("objective", [SpanCorruption(), UL2()], ids=lambda one: type(one).__name__)
def test_flops_are_those_of_the_compiled_forward_pass(objective: Objective) -> None:
    """Of the objective's own batch, as XLA counts them, less what is no matrix product."""
    cfg = t5(vocab=300, layers=1, width=128, heads=2, head_dim=64, mlp=512, context=128)
    method = Pretrain(objective=objective)
    e = experiment(Path("texts")).replace(model=cfg, method=method, batch_tokens=2 * 128, seq_len=128)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in batch_shapes(e).items()}
    assert (batch["encoder_tokens"].shape[1], batch["tokens"].shape[1]) == e.lengths and e.lengths[1] != 128
    model = Transformer(cfg, SIMPLE)
    forward = jax.jit(lambda params, batch: model(params, Inputs.of(batch))).lower(model.shapes(), batch)
    counted = forward.compile().cost_analysis()["flops"]
    assert e.flops_per_token * e.batch_tokens / 3 == pytest.approx(counted, rel=0.05)


def test_flops_of_published_sizes_at_their_lengths() -> None:
    """T5-base reads 512 tokens and writes 114: 1.81 times less than two stacks of 512 would take."""
    e = published(t5_small, "base", t5_base)
    assert e.lengths == (512, 114)
    assert count.flops_per_token(t5_base, 512) / e.flops_per_token == pytest.approx(1.81, abs=0.005)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(encoder_layers=2), "model.encoder and model.encoder_layers are both given"),
        (dict(encoder=LLAMA), "model.encoder is to have causal=False"),
        (dict(parametrisation=MuP(6)), "MuP says nothing of an encoder of another width"),
    ],
)
def test_an_encoder_that_cannot_be(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(OWN, **changes)


def test_a_decoder_wants_its_encoder() -> None:
    with pytest.raises(ValueError, match="this decoder reads an encoder: give the encoder's tokens too"):
        jax.eval_shape(Transformer(T5, SIMPLE).hidden, lively(T5), tokens(T5, 1, 3))
    with pytest.raises(ValueError, match="a decoder that reads an encoder is causal"):
        replace(T5, causal=False)


def test_however_it_is_computed_it_is_the_same() -> None:
    source, target = tokens(T5, 2, 7), tokens(T5, 2, 6, seed=1)

    def gradients(**changes: Any) -> Any:
        model = Transformer(T5, replace(SIMPLE, **changes))
        return jax.jit(jax.grad(lambda p: (both(model, p, source, target) ** 2).mean()))(lively(T5))

    expected = gradients()
    trees_close(gradients(attention="blocked", block=4, flat="yes", unroll=0, remat="full"), expected, 1e-4)
    trees_close(gradients(attention="flash", block=4), expected, 1e-4)
