"""The loss against numpy, by chunks as in one piece, and never with all logits at once."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model.families import bert, llama, mixtral
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.train.loss import chunked_loss, cross_entropy
from lm.tune.pretrain import Pretrain
from tests.model.reference import GPT, LLAMA, SIMPLE, lively, tokens, trees_close

B, T, D, V = 2, 12, 6, 17
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, T, D)).astype(np.float32)
HEAD = {"kernel": RNG.standard_normal((D, V)).astype(np.float32), "unused": np.ones(3, np.float32)}
REST = {
    "targets": RNG.integers(0, V, (B, T)).astype(np.int32),
    "weights": RNG.random((B, T)).astype(np.float32) * (RNG.random((B, T)) > 0.3),
}


def by_hand(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, z_loss: float) -> tuple[float, float, float]:
    """Total, nll and right answers, a token at a time in float64."""
    total = nll = right = 0.0
    for at in np.ndindex(targets.shape):
        row = logits[at].astype(np.float64)
        log_z = np.log(np.exp(row - row.max()).sum()) + row.max()
        nll += weights[at] * (log_z - row[targets[at]])
        total += weights[at] * (log_z - row[targets[at]] + z_loss * log_z**2)
        right += weights[at] * (row.argmax() == targets[at])
    return total, nll, right


@settings(max_examples=25, deadline=None)
@given(z_loss=st.sampled_from([0.0, 1e-4, 0.1]), scale=st.floats(0.1, 50), shift=st.floats(-50, 50))
def test_cross_entropy_and_z_loss(z_loss: float, scale: float, shift: float) -> None:
    logits = (X @ HEAD["kernel"] * scale + shift).astype(np.float32)
    total, metrics = jax.jit(cross_entropy, static_argnums=3)(logits, REST["targets"], REST["weights"], z_loss)
    expected = by_hand(logits, REST["targets"], REST["weights"], z_loss)
    np.testing.assert_allclose((total, metrics["loss"], metrics["accuracy"]), expected, rtol=2e-5)


def test_the_z_term_pulls_the_normaliser_to_one() -> None:
    logits, one = np.full((1, 1, V), 5.0, np.float32), np.ones((1, 1), np.int32)
    pull = jax.jit(jax.grad(lambda x: cross_entropy(x, one - 1, one.astype(np.float32), 0.1)[0]))(logits)
    assert float(pull.sum()) == pytest.approx(0.1 * 2 * (5 + np.log(V)), rel=1e-5)


# ---------------------------------------------------------------- chunks


def chunk_loss(head: Any, x: jax.Array, rest: Any) -> Any:
    return cross_entropy(x @ head["kernel"], rest["targets"], rest["weights"], 1e-2)


def chunked(chunk: int, head: Any, x: Any) -> Any:
    total, metrics = chunked_loss(chunk_loss, head, x, REST, chunk)
    return 3 * total, metrics  # a cotangent that is not 1


@pytest.mark.parametrize("chunk", [1, 4, 5, 7, 12, 100])
def test_by_chunks_is_the_whole(chunk: int) -> None:
    """Value, metrics and every gradient; 5 and 7 do not divide 12."""
    got, expected = (
        jax.jit(jax.value_and_grad(partial(chunked, c), argnums=(0, 1), has_aux=True))(HEAD, X) for c in (chunk, 0)
    )
    trees_close(got[1], expected[1])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), got[0], expected[0])
    np.testing.assert_array_equal(got[1][0]["unused"], 0)


def test_gradients_of_chunks_add_up_in_float32() -> None:
    """In bfloat16 the parameters' gradient would stay at 256, since 256 + 1 is 256 there."""
    x = jnp.asarray([256.0] + [1.0] * 64)[None, :, None]
    add = lambda p, x, rest: ((p * x).sum().astype(jnp.float32), {})  # noqa: E731
    gradient = jax.grad(lambda p: chunked_loss(add, p, x, {}, 1)[0])(jnp.ones((), jnp.bfloat16))
    assert float(gradient) == 320


def batch(cfg: Any) -> dict[str, np.ndarray]:
    weights = (np.random.default_rng(0).random((B, T)) > 0.4).astype(np.float32)
    return {"tokens": tokens(cfg, B, T), "targets": tokens(cfg, B, T, seed=1), "weights": weights / weights.sum()}


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(cfg: Any, chunk: int, params: Any, data: Any) -> Any:
    learner = Pretrain(z_loss=1e-3).build(Transformer(cfg, replace(SIMPLE, loss_chunk=chunk)))
    return jax.value_and_grad(lambda p: learner.loss(p, (), data, None)[0])(params)


def gradients(cfg: Any, chunk: int, data: Any) -> Any:
    return jax.device_get(_gradients(cfg, chunk, lively(cfg), data))


@pytest.mark.parametrize("cfg", [GPT, LLAMA], ids=["tied", "untied"])
def test_a_model_s_gradients_are_the_same_by_chunks(cfg: Any) -> None:
    data = batch(cfg)
    (loss, got), (whole, expected) = gradients(cfg, 4, data), gradients(cfg, 0, data)
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    trees_close(got, expected, 5e-5)  # keys' biases are rounding alone


def test_what_has_no_weight_does_not_count() -> None:
    data = batch(LLAMA)
    other = {**data, "targets": np.where(data["weights"] > 0, data["targets"], 3)}
    assert (other["targets"] != data["targets"]).any()
    jax.tree.map(np.testing.assert_array_equal, gradients(LLAMA, 4, other), gradients(LLAMA, 4, data))


@pytest.mark.parametrize("cfg", [GPT, LLAMA], ids=["gpt", "llama"])
def test_a_document_s_loss_is_its_own(cfg: Any) -> None:
    """Packed behind another, whatever that says, as alone; a prefix is seen from its start."""
    params, learner = lively(cfg), Pretrain().build(Transformer(cfg, SIMPLE))
    loss = jax.jit(lambda data: learner.loss(params, (), data, None)[0])
    second = np.arange(T) >= 5
    packed = {
        **batch(cfg),
        "segment_ids": np.broadcast_to(1 + second, (B, T)).astype(np.int32),
        "positions": np.broadcast_to(np.where(second, np.arange(T) - 5, np.arange(T)), (B, T)).astype(np.int32),
    }
    packed["weights"] = packed["weights"] * second
    other = {**packed, "tokens": np.where(second, packed["tokens"], tokens(cfg, B, T, seed=9))}
    alone = {name: a[:, 5:] for name, a in packed.items() if name not in ("segment_ids", "positions")}
    assert float(loss(packed)) == float(loss(other)) == pytest.approx(float(loss(alone)), rel=1e-5)
    seen = {**alone, "prefix": np.broadcast_to(np.arange(T - 5) < 4, (B, T - 5))}
    later = {
        **seen,
        "weights": seen["weights"] * (np.arange(T - 5) == 0),
    }  # the first token alone, which sees three more
    changed = {**later, "tokens": np.where(np.arange(T - 5) == 3, (later["tokens"] + 1) % cfg.vocab, later["tokens"])}
    assert float(loss(later)) != float(loss(changed))


def test_the_loss_is_the_mean_over_the_weights() -> None:
    data = batch(LLAMA)
    learner = Pretrain().build(Transformer(LLAMA, SIMPLE))
    _, metrics = jax.jit(learner.loss)(lively(LLAMA), (), data, None)
    logits = np.asarray(jax.jit(learner.model)(lively(LLAMA), data["tokens"]))
    _, nll, right = by_hand(logits, data["targets"], data["weights"], 0.0)
    np.testing.assert_allclose((metrics["loss"], metrics["accuracy"]), (nll, right), rtol=1e-5)


# ---------------------------------------------------------------- routers

ROUTED = mixtral(vocab=29, layers=2, width=16, heads=4, kv_heads=2, mlp=10, experts=3, context=24)


def test_routers_losses_count_by_the_batch_s_share_of_the_weights() -> None:
    """So that those of micro-batches, whose weights sum to 1 together, add up to their mean."""
    learner, params, data = Pretrain().build(Transformer(ROUTED, SIMPLE)), lively(ROUTED), batch(ROUTED)
    data = {**data, "weights": data["weights"] / data["weights"].sum()}
    losses = jax.jit(learner.model.hidden)(params, data["tokens"]).losses
    assert len(losses) == 2 and min(losses.values()) > 1e-3
    loss = jax.jit(learner.loss)
    for share in (1.0, 0.25):
        total, metrics = loss(params, (), {**data, "weights": data["weights"] * np.float32(share)}, None)
        np.testing.assert_allclose([metrics[name] for name in losses], [share * x for x in losses.values()], rtol=1e-5)
        np.testing.assert_allclose(total, metrics["loss"] + share * sum(losses.values()), rtol=1e-5)


# ---------------------------------------------------------------- next sentences

PAIRED = bert(vocab=31, layers=2, width=12, heads=3, mlp=20, context=24)
PAIRED = replace(PAIRED, output=replace(PAIRED.output, next_sentence=True))


def test_next_sentences_add_their_mean_over_the_rows_that_ask() -> None:
    model, params = Transformer(PAIRED, SIMPLE), lively(PAIRED)
    learner, masked = Pretrain().build(model), {**batch(PAIRED), "token_types": RNG.integers(0, 2, (B, T))}
    asked = {"next_sentence": np.array([0, 1], np.int32), "next_sentence_weights": np.array([0.75, 0.25], np.float32)}
    loss = jax.jit(learner.loss)
    (plain, before), (total, metrics) = (loss(params, (), data, None) for data in (masked, masked | asked))
    x = jax.jit(model.hidden)(params, Inputs(masked["tokens"], token_types=masked["token_types"])).x
    logits = np.asarray(jax.jit(model.next_sentence)(params, x))
    _, nll, right = by_hand(logits, asked["next_sentence"], asked["next_sentence_weights"], 0.0)
    np.testing.assert_allclose((metrics["next_sentence_loss"], metrics["next_sentence"]), (nll, right), rtol=1e-4)
    np.testing.assert_allclose(total - plain, nll, rtol=1e-4)
    assert metrics["loss"] == before["loss"] and "next_sentence" not in before


# ---------------------------------------------------------------- memory


def arrays(jaxpr: Any) -> Iterator[Any]:
    """Every array that a program names, those of its loops and calls included."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "shape"))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


def largest(chunk: int) -> int:
    """Elements of the largest array with a vocabulary's axis in the gradient of a Llama 3's loss, weights apart."""
    vocab, rows, length = 128_256, 2, 64
    cfg = llama(vocab=vocab, layers=1, width=8, heads=2, mlp=8, context=length)
    model = Transformer(cfg, replace(SIMPLE, loss_chunk=chunk))
    learner = Pretrain(z_loss=1e-4).build(model)
    data = {
        n: jax.ShapeDtypeStruct((rows, length), d) for n, d in (("tokens", int), ("targets", int), ("weights", float))
    }
    step = jax.make_jaxpr(jax.value_and_grad(lambda p, b: learner.loss(p, (), b, None)[0]))(model.shapes(), data)
    return max(int(np.prod(a.shape)) for a in arrays(step.jaxpr) if vocab in a.shape) // vocab


def test_the_logits_of_a_large_vocabulary_never_exist_whole() -> None:
    assert largest(0) == 2 * 64
    assert largest(16) == 2 * 16
