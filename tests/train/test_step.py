"""One step: the same in pieces, on any mesh, in place; and it learns."""

import math
from dataclasses import replace
from functools import cache
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.families import bert, gpt, llama
from lm.model.transformer import Transformer
from lm.sharding.batches import place_batch
from lm.sharding.mesh import make_mesh
from lm.train.loop import NotFinite, train
from lm.train.optim import AdamW, Muon, Optimizer
from lm.train.schedule import Constant
from lm.train.state import TrainState
from lm.train.step import build_eval, build_init, build_step, init_state, no_rollout, state_shardings
from lm.tune.pretrain import Pretrain, Pretraining
from tests.model.reference import trees_close

ROWS, LENGTH, STEPS = 8, 8, 4
GPT = gpt(vocab=32, layers=2, width=16, heads=4, context=LENGTH)
LLAMA = llama(vocab=32, layers=2, width=16, heads=4, kv_heads=2, mlp=24, context=LENGTH)
# as on a CPU, but one layer traced, and in float32: bfloat16 would round otherwise in other orders
COMPUTE = replace(Compute(matmul="float32").resolve("cpu"), unroll=1, loss_chunk=4)
ADAMW = AdamW(learning_rate=1e-2, eps=1e-3, schedule=Constant())


def batch(seed: int) -> dict[str, np.ndarray]:
    """Rows of two documents and, in some, padding."""
    rng = np.random.default_rng(seed)
    cut, end = rng.integers(2, 5, (ROWS, 1)), rng.integers(6, 9, (ROWS, 1))
    at = np.arange(LENGTH)
    segments = np.where(at < end, 1 + (at >= cut), 0)
    return {
        "tokens": rng.integers(0, 32, (ROWS, LENGTH)).astype(np.int32),
        "targets": rng.integers(0, 32, (ROWS, LENGTH)).astype(np.int32),
        "weights": (segments > 0).astype(np.float32),
        "segment_ids": segments.astype(np.int32),
        "positions": np.where(at < cut, at, at - cut).astype(np.int32),
    }


def learner_of(cfg: ModelConfig) -> Pretraining:
    return Pretrain(z_loss=1e-3).build(Transformer(cfg, COMPUTE))


@cache
def fresh(cfg: ModelConfig) -> Any:
    return jax.device_get(jax.jit(Transformer(cfg, COMPUTE).init)(jax.random.key(0)))


def begun(learner: Pretraining, chain: Any, mesh: Any, ema: float = 0.0) -> TrainState:
    """What `init_state` gives (see the test of it), without a program to initialise for every mesh."""
    shapes, placed = state_shardings(learner, chain, mesh, ema)
    zeros, params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), fresh(learner.model.cfg)
    return jax.device_put(replace(zeros, params=params, ema=params if ema else ()), placed)


def placing(step: Any, mesh: Any) -> Any:
    """The step of batches on the host: those of one shape are one program."""
    return lambda state, data: step(state, place_batch(data, mesh))


@cache
def on_one(cfg: ModelConfig, optimizer: Optimizer = ADAMW, **options: Any) -> Any:
    """(learner, chain, mesh, step) on one device, compiled once for all tests; its state is `begun` anew."""
    learner, mesh = learner_of(cfg), make_mesh({"data": 1}, jax.devices()[:1])
    chain = optimizer.build(STEPS, learner.axes())
    return learner, chain, mesh, placing(build_step(learner, chain, mesh, **options), mesh)


def run(
    cfg: ModelConfig, shape: dict[str, int] | None = None, optimizer: Optimizer = ADAMW, **options: Any
) -> tuple[list[dict[str, float]], TrainState]:
    """The metrics and the last state of some steps, on one device or a mesh."""
    learner, chain, mesh, step = on_one(cfg, optimizer, **options)
    if shape:
        mesh = make_mesh(shape)
        step = placing(build_step(learner, chain, mesh, **options), mesh)
    state, metrics = begun(learner, chain, mesh, options.get("ema", 0.0)), []
    for n in range(STEPS):
        state, found = step(state, batch(n))
        metrics.append({name: float(value) for name, value in found.items()})
    return metrics, state


@cache
def alone(cfg: ModelConfig, optimizer: Optimizer = ADAMW) -> Any:
    return run(cfg, None, optimizer)


def same(got: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(got[0], expected[0], strict=True):
        assert a == pytest.approx(b, rel=tolerance)
    trees_close(jax.device_get(got[1].params), jax.device_get(expected[1].params), 10 * tolerance)


def test_accumulated_is_the_whole_batch() -> None:
    """Though the slices have different numbers of tokens."""
    same(run(LLAMA, accumulate=4), alone(LLAMA), 1e-5)


def test_sharded_is_single() -> None:
    """In all metrics and parameters; the losses of other families and meshes are in tests/test_identity.py."""
    shape = {"data": 2, "fsdp": 2, "tensor": 2}
    got = run(LLAMA, shape)
    same(got, alone(LLAMA), 2e-5)
    largest = max(jax.tree.leaves(got[1].params), key=lambda a: a.size)
    split = math.prod(shape.get(axis, 1) for axis in ("fsdp", "tensor"))
    assert largest.addressable_shards[0].data.size * split == largest.size  # it was sharded


def test_sharded_is_single_for_muon_and_in_pieces() -> None:
    muon = Muon(learning_rate=1e-2, schedule=Constant())
    same(run(LLAMA, {"fsdp": 2, "tensor": 2, "data": 2}, muon, accumulate=2), alone(LLAMA, muon), 2e-5)


def test_the_metrics_are_the_batch_s() -> None:
    """Those of the first step, beside an evaluation before it."""
    learner, chain, mesh, _ = on_one(GPT)
    params = begun(learner, chain, mesh).params
    found = build_eval(learner, mesh)(params, (), batch(0), 0)
    first = alone(GPT)[0][0]
    tokens = batch(0)["weights"].sum()
    assert found["tokens"] == first["tokens"] == tokens
    assert float(found["loss"]) / tokens == pytest.approx(first["loss"], rel=1e-5)
    assert float(found["accuracy"]) / tokens == pytest.approx(first["accuracy"], abs=1e-6)
    scaled = {**batch(0), "weights": batch(0)["weights"] / tokens}
    norm = jax.jit(lambda p: optax.global_norm(jax.grad(lambda p: learner.loss(p, (), scaled, None)[0])(p)))(params)
    assert float(norm) == pytest.approx(first["grad_norm"], rel=1e-5)
    assert first["total"] > first["loss"]  # by the z-loss


def test_next_sentences_in_pieces_are_those_of_the_whole_batch() -> None:
    """Though some rows ask for none, and an evaluation tells how many do."""
    model = bert(vocab=32, layers=1, width=16, heads=4, mlp=24, context=LENGTH)
    cfg = replace(model, output=replace(model.output, next_sentence=True))
    asking = np.arange(ROWS) % 3 > 0
    data = {
        **batch(0),
        "next_sentence": (np.arange(ROWS) // 2 % 2).astype(np.int32),
        "next_sentence_weights": asking.astype(np.float32),
    }
    learner, chain, mesh, _ = on_one(cfg)
    found = build_eval(learner, mesh)(begun(learner, chain, mesh).params, (), data, 0)
    assert float(found["pairs"]) == asking.sum()
    stepped = []
    for accumulate in (1, 4):
        _, metrics = build_step(learner, chain, mesh, accumulate=accumulate)(begun(learner, chain, mesh), data)
        stepped.append(np.array([metrics[k] for k in ("total", "next_sentence_loss", "next_sentence", "grad_norm")]))
    np.testing.assert_allclose(stepped[1], stepped[0], rtol=1e-5)
    means = [float(found[k]) / asking.sum() for k in ("next_sentence_loss", "next_sentence")]
    np.testing.assert_allclose(stepped[0][1:3], means, rtol=1e-5)


DECAY = 0.7


def test_the_state_is_donated() -> None:
    learner, chain, mesh, step = on_one(LLAMA, ema=DECAY)
    before = begun(learner, chain, mesh, DECAY)
    after, _ = step(before, batch(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    assert int(after.step) == 1


def test_the_average_follows_the_parameters() -> None:
    learner, chain, mesh, step = on_one(LLAMA, ema=DECAY)
    state = begun(learner, chain, mesh, DECAY)
    expected = jax.device_get(state.params)
    trees_close(jax.device_get(state.ema), expected, 0)
    for n in range(3):
        state, _ = step(state, batch(n))
        params = jax.device_get(state.params)
        expected = jax.tree.map(lambda e, p: DECAY * e + (1 - DECAY) * p, expected, params)
    trees_close(jax.device_get(state.ema), expected, 1e-4)
    assert alone(LLAMA)[1].ema == ()


@cache
def sharded_start() -> tuple[Any, Any]:
    """(where each array of a state lies on a mesh, that state)."""
    learner, chain, *_ = on_one(LLAMA)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    return state_shardings(learner, chain, mesh, DECAY), init_state(learner, chain, mesh, 0, DECAY)


def test_a_seed_gives_the_same_start_on_any_mesh() -> None:
    learner, chain, *_ = on_one(LLAMA)
    init = build_init(learner, chain, make_mesh({"data": 8}), DECAY)
    one, third = jax.device_get([init(0), init(2)])
    jax.tree.map(np.testing.assert_array_equal, one, jax.device_get(sharded_start()[1]))
    jax.tree.map(np.testing.assert_array_equal, one, jax.device_get(begun(learner, chain, make_mesh(), DECAY)))
    assert not np.array_equal(one.params["stem"]["tokens"], third.params["stem"]["tokens"])


DROPOUT = replace(LLAMA, dropout=0.5)
STILL = AdamW(learning_rate=0.0, schedule=Constant())


def test_dropout_s_keys_come_from_the_seed_and_the_step() -> None:
    losses = []
    for seed in (3, 3, 4):
        learner, chain, mesh, step = on_one(DROPOUT, STILL, seed=seed)
        state = begun(learner, chain, mesh)
        for _ in range(2):  # the same parameters and batch
            state, metrics = step(state, batch(0))
            losses.append(float(metrics["loss"]))
    assert losses[:2] == losses[2:4] and len(set(losses)) == 4


def test_each_micro_batch_has_a_key_of_its_own() -> None:
    """Two micro-batches of the same rows, and what each has under the halves of the step's key."""
    seed = 3
    learner, chain, mesh, step = on_one(DROPOUT, STILL, seed=seed, accumulate=2)
    state = begun(learner, chain, mesh)
    half = {name: a[: ROWS // 2] for name, a in batch(0).items()}
    half["weights"] = half["weights"] / (2 * half["weights"].sum())
    loss = jax.jit(lambda key: learner.loss(fresh(DROPOUT), (), half, key)[1]["loss"])
    expected = [float(loss(key)) for key in jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))]
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    twice = {name: np.repeat(a, 2, axis=0) for name, a in half.items()}  # rows go to micro-batches in turn
    found = step(state, twice)[1]
    assert float(found["loss"]) == pytest.approx(sum(expected), rel=1e-5)


def test_the_state_s_description_is_the_state() -> None:
    (abstract, placed), state = sharded_start()
    described = jax.tree.map(lambda a: (a.shape, a.dtype), abstract)
    assert described == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


# ---------------------------------------------------------------- life


@pytest.mark.parametrize("cfg", [GPT, LLAMA], ids=["gpt", "llama"])
def test_it_learns_a_text(cfg: ModelConfig) -> None:
    text = np.array([ord(c) % 32 for c in "the cat sat on the mat, the dog sat on the log. "], np.int32)
    starts = np.arange(ROWS)[:, None] * 5 + np.arange(LENGTH + 1)
    rows = text[starts % len(text)]
    one, where = np.ones((ROWS, LENGTH), np.int32), np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    data = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weights": one.astype(np.float32)}
    data |= {"segment_ids": one, "positions": where}  # which make it the program of the other tests
    learner, chain, mesh, step = on_one(cfg)
    seen: list[float] = []
    state = begun(learner, chain, mesh)
    list(
        train(
            state,
            step,
            repeat(data),
            no_rollout,
            60,
            lambda n, m: seen.append(m["loss"]),
            lambda n: False,
            lambda *_: True,
        )
    )
    assert len(seen) == 60 and seen[0] == pytest.approx(math.log(32), abs=1)
    assert seen[-1] < 0.4 * seen[0]


def test_a_loss_that_is_not_a_number_stops_at_its_step() -> None:
    learner, chain, mesh, step = on_one(GPT)
    state, seen, visited = begun(learner, chain, mesh), [], []

    def spoiled(state: Any, batch: Any) -> Any:
        if int(state.step) == 4:  # the fifth step starts from a parameter that is not a number
            state.params["stem"]["tokens"] = state.params["stem"]["tokens"] * jnp.nan
        return step(state, batch)

    with pytest.raises(NotFinite, match="step 5: the loss is nan"):
        list(
            train(
                state,
                spoiled,
                (batch(n) for n in range(9)),
                no_rollout,
                9,
                lambda n, m: seen.append(n),
                lambda n: n == 6,
                lambda n, s: visited.append(n) or False,
            )
        )
    assert seen == [1, 2, 3, 4] and visited == []
