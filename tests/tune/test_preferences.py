"""Learning from preferences: log-probabilities of packed sides, the reference, runs, resumed, on meshes."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.loader import prepare
from lm.data.objective import padded
from lm.experiment import Experiment
from lm.machine.monitor import Bar
from lm.model.compute import Compute
from lm.model.transformer import Transformer
from lm.pretrained import load
from lm.run import course
from lm.run.evaluate import evaluate
from lm.sharding.mesh import make_mesh
from lm.text.tokenizer import Bytes
from lm.train.step import build_rollout, fresh_state
from lm.tune import preferences
from lm.tune.dpo import DPO
from lm.tune.kto import KTO
from lm.tune.lora import LoRA
from lm.tune.orpo import ORPO
from lm.tune.preferences import REFERENCE, PreferenceLearner
from lm.tune.sequences import sequences
from lm.tune.simpo import SimPO
from lm.tune.trains import All, Only
from tests.model.reference import lively
from tests.tiny import lines, of
from tests.tune.pairs import preferring, write

METHODS = {"dpo": DPO(), "simpo": SimPO(), "orpo": ORPO(), "kto": KTO()}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def prepared(e: Experiment) -> Any:
    data = prepare(e.data, e.length, e.rows, e.seed, e.method.objective, Bytes().make([]))
    return data, e.build(Transformer(e.model, Compute(matmul="float32").resolve("cpu")), data)


def state_of(e: Experiment, learner: Any) -> Any:
    chain = e.optimizer.build(e.steps, learner.axes())
    return jax.jit(lambda key: fresh_state(learner, chain, 0.0, key))(jax.random.key(0))


def test_sums_are_of_each_side_s_masked_targets() -> None:
    logprobs = jnp.array([[-1.0, -2, -4, -8, -16, -jnp.inf, -32]])
    segments = jnp.array([[1, 1, 2, 2, 3, 3, 0]])
    mask = jnp.array([[0.0, 1, 1, 1, 1, 0, 0]])
    found = sequences(logprobs, mask, segments, 2)
    np.testing.assert_array_equal(found.logprobs, [[[-2, -12], [-16, 0]]])
    np.testing.assert_array_equal(found.lengths, [[[1, 2], [1, 0]]])
    np.testing.assert_array_equal(found.means, [[[-2, -6], [-16, 0]]])


def test_packed_sides_are_as_each_alone(file: Path) -> None:
    """Nothing leaks from the chosen side into the rejected one, or between pairs."""
    data, learner = prepared(preferring(file))
    batch, params = data.batch(0), lively(learner.model.cfg)
    assert batch["weights"].sum(1).max() > 1
    found = preferences._reference(learner.model, params, {name: batch[name] for name in preferences.READ})
    alone = np.zeros(found.shape)
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(learner.model(params, tokens)))
    for row, pair, side in np.argwhere(np.stack([batch["weights"]] * 2, -1) > 0):
        own = batch["segment_ids"][row] == 2 * pair + side + 1
        tokens, targets = (np.pad(batch[name][row][own], (0, 24 - own.sum())) for name in ("tokens", "targets"))
        each = np.take_along_axis(np.asarray(forward(tokens[None]))[0], targets[:, None], -1)[:, 0]
        alone[row, pair, side] = each[: own.sum()][batch["loss_mask"][row][own] > 0].sum()
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert (alone < 0).sum() == 2 * batch["weights"].sum()


TRAINS = {"all": All(), "only": Only("mlp"), "lora": LoRA(rank=2, dropout=0.5)}


@pytest.mark.parametrize("trains", TRAINS)
def test_before_the_first_update_the_policy_is_the_reference_to_the_bit(trains: str, file: Path) -> None:
    """Also where the adapters and the model declare dropout."""
    e = replace(preferring(file), trains=TRAINS[trains]).replace(model=dict(dropout=0.3))
    data, learner = prepared(e)
    state = state_of(e, learner)
    batch = build_rollout(learner, make_mesh({}, jax.devices()[:1]), 0)(0, state, data.batch(0))
    assert (np.asarray(batch[REFERENCE])[np.asarray(batch["weights"]) > 0] < 0).all()
    batch = {**batch, "weights": batch["weights"] / batch["weights"].sum()}
    step = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))
    (loss, metrics), _ = step(state.params, state.frozen, batch, jax.random.key(1))
    assert metrics["chosen_reward"] == metrics["rejected_reward"] == metrics["margin"] == metrics["accuracy"] == 0
    assert float(loss) == pytest.approx(np.log(2), rel=1e-6)


def test_under_adapters_the_reference_costs_no_memory(file: Path) -> None:
    """Of the start's parameters those are kept that are trained themselves."""
    for trains, value in TRAINS.items():
        learner = prepared(replace(preferring(file), trains=value))[1]
        params, frozen = jax.eval_shape(learner.init, jax.random.key(0))
        kept = frozen if trains == "all" else frozen["method"]
        assert len(jax.tree.leaves(kept)) == (0 if trains == "lora" else len(jax.tree.leaves(params)))


def test_the_reference_is_computed_once_for_each_pair_and_does_not_move(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = preferring(file)
    data, learner = prepared(e)
    state, computed = state_of(e, learner), list[Any]()
    compute = preferences._reference
    monkeypatch.setattr(preferences, "_reference", lambda *args: computed.append(args[1]) or compute(*args))
    rollout, first = build_rollout(learner, make_mesh({}, jax.devices()[:1]), 0), {}
    moved = replace(state, params=jax.tree.map(lambda x: x + 1, state.params))
    for step in range(24):
        batch = rollout(step, moved if step else state, data.batch(step))
        there = np.asarray(batch["weights"]) > 0
        for key, value in zip(map(bytes, np.asarray(batch["pair_ids"])[there]), batch[REFERENCE][there], strict=True):
            np.testing.assert_array_equal(first.setdefault(key, value), value)
    epoch = data._plans["pairs", "train"].rows_per_epoch / 8
    assert len(computed) <= epoch + 2 < 20 and all(params is state.frozen for params in computed)
    # from a later step on, as a run that resumes
    again = prepared(e)[1]
    again.batches(20).close()
    late = build_rollout(again, make_mesh({}, jax.devices()[:1]), 0)(20, moved, data.batch(20))
    there = np.asarray(late["weights"]) > 0
    for key, value in zip(map(bytes, np.asarray(late["pair_ids"])[there]), late[REFERENCE][there], strict=True):
        np.testing.assert_array_equal(first[key], value)


def test_what_is_logged_is_what_is_evaluated(file: Path) -> None:
    """The metrics of a step and the measures of a held-out batch, of the same pairs."""
    for name, method in METHODS.items():
        e = preferring(file, method)
        data, learner = prepared(e)
        assert type(learner) is not PreferenceLearner or name in ("simpo", "orpo")
        state, batch = state_of(e, learner), data.batch(0)
        batch = learner.rollout(state.params, state.frozen, batch, jax.random.key(0))
        batch = padded({name: np.asarray(array) for name, array in batch.items()}, len(batch["tokens"]) + 1)
        params = jax.tree.map(lambda x: x * 1.1, state.params)
        sums = jax.jit(learner.evaluate)(params, state.frozen, batch)
        measures = learner.measure({k: float(v) for k, v in sums.items()}, data, "pairs")
        assert list(measures) == [measure.name for measure in method.measures]
        scaled = {k: a / a.sum() if k in learner.weights else a for k, a in batch.items()}
        _, metrics = jax.jit(learner.loss)(params, state.frozen, scaled, None)
        for measure, value in measures.items():
            assert float(metrics[measure]) == pytest.approx(value, rel=1e-4, abs=1e-6), (name, measure)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(preferring(file), folder)
    return folder


def test_a_run_learns_what_is_preferred_and_replies(finished: Path) -> None:
    last, losses = lines(finished)[-1], of(lines(finished), "loss")
    assert losses[1] == pytest.approx(np.log(2)) and losses[12] < losses[1]
    names = [name.rpartition("/")[2] for name in last if name.startswith("eval/pairs/")]
    assert names == ["loss", "accuracy", "chosen_reward", "rejected_reward", "margin"]
    assert last["eval/pairs/accuracy"] > 0.8 and last["eval/pairs/margin"] > 0
    assert evaluate(finished)["pairs"]["loss"] == pytest.approx(last["eval/pairs/loss"], rel=1e-3)
    assert (finished / "samples.txt").read_text().startswith("cd\n\n")
    page = (finished / "report.html").read_text()
    assert "chosen:" in page and "held-out pair" in page
    assert load(finished).model.cfg.vocab == 258


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_stopped_and_resumed_it_has_the_same_bits(
    name: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = preferring(file, METHODS[name], steps=24)
    course.train(e, tmp_path / "whole")
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(Bar, "update", lambda _, n, *__: n == 13 and [signal.raise_signal(one) for one in once])
        with pytest.raises(course.Interrupted):
            course.train(e, tmp_path / "run")
    course.train(e, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_same_on_any_mesh(name: str, file: Path, tmp_path: Path) -> None:
    """Its first three updates, in float32."""
    found, e = [], preferring(file, METHODS[name], steps=4)
    exact = replace(e.compute, matmul="float32")
    for i, mesh in enumerate(({"data": 1, "fsdp": 8}, {"fsdp": 2, "tensor": 2, "context": 2}, {"data": 8})):
        course.train(replace(e, mesh=mesh, compute=exact, prompts=()), tmp_path / str(i))
        found.append(of(lines(tmp_path / str(i)), "loss"))
    for one in found[1:]:
        assert found[0] == {n: pytest.approx(loss, rel=2e-5) for n, loss in one.items()} and len(one) == 4


def test_a_prompt_without_room_is_refused_before_the_first_step(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts: 'xxx"):
        course.train(replace(preferring(file), prompts=("x" * 40,)), tmp_path / "run")
