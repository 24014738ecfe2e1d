"""What a method is to a run: its loss, its rollouts, what it freezes, its measures; pretraining has them at no cost."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.experiment import Experiment
from lm.machine.monitor import Bar
from lm.pretrained import read_experiment
from lm.run import course
from lm.run.evaluate import evaluate
from lm.run.vmapped import obstacle
from lm.sharding.mesh import make_mesh
from lm.train.checkpoint import Checkpoints
from lm.train.state import new_state
from lm.train.step import build_rollout, build_step, init_state, no_rollout, rollout_key, state_shardings
from tests.tiny import experiment, lines, of, write_texts
from tests.train.test_step import ADAMW, LLAMA, batch, learner_of
from tests.tune.even import EvenTokens
from tests.tune.rollouts import times

STEPS = 20
pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    base = experiment(write_texts(tmp_path_factory.mktemp("texts"))).replace(model=dict(layers=1, dropout=0.0))
    return replace(base, method=EvenTokens(), steps=STEPS, prompts=("the ",), checkpoint_every_steps=8)


@pytest.fixture(scope="module")
def finished(declared: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(declared, folder)
    return folder


def test_it_learns_from_what_it_draws(finished: Path) -> None:
    even = of(lines(finished), "even")
    assert list(even) == list(range(1, STEPS + 1))
    assert even[1] == pytest.approx(0.5, abs=0.15) and even[STEPS] > even[1] + 0.2


def test_it_is_told_in_its_own_measures(finished: Path) -> None:
    last = lines(finished)[-1]
    told = {name for name in last if name.startswith("eval/")}
    assert told == {"eval/loss", *(f"eval/{s}/{k}" for s in ("sums", "words") for k in ("loss", "even"))}
    for source, values in evaluate(finished).items():
        assert values == {k: pytest.approx(last[f"eval/{source}/{k}"], rel=1e-3) for k in ("loss", "even")}
    page = (finished / "report.html").read_text()
    assert f"{last['eval/words/even']:.1%}" in page and "even tokens of those drawn" in page
    assert "accuracy" not in page and "bits per byte" not in page
    about = json.loads((finished / "about.json").read_text())
    assert about["method"]["headline"] == "even" and about["baselines"] == {}
    assert json.loads((finished / "samples.json").read_text())[0]["prompt"] == "the "


def test_stopped_and_resumed_it_has_the_same_bits(
    finished: Path, declared: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsampled = replace(declared, prompts=())
    monkeypatch.setattr(course, "write_report", lambda folder: folder / "report.html")
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(Bar, "update", lambda _, n, *__: n == 11 and [signal.raise_signal(one) for one in once])
        with pytest.raises(course.Interrupted):
            course.train(unsampled, tmp_path / "run")
    assert STEPS > max(of(lines(tmp_path / "run"), "loss")) > 8
    course.train(unsampled, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(finished)


def restored(folder: Path) -> Any:
    """The run in `folder`, and its last state."""
    run = course.Run(read_experiment(folder), folder)
    return run, Checkpoints(folder / "checkpoints").restore(run.state_shapes())[0]


def test_what_is_frozen_has_no_optimizer_and_does_not_move(finished: Path) -> None:
    run, state = restored(finished)
    fresh = run.initial_state()
    jax.tree.map(np.testing.assert_array_equal, state.frozen, fresh.frozen)
    jax.tree.map(np.testing.assert_array_equal, fresh.params, fresh.frozen)
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), state.params, state.frozen)
    assert min(jax.tree.leaves(moved)) > 0
    alone = jax.eval_shape(lambda params: new_state(params, run.optimizer, ema=True), fresh.params)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(alone.opt_state)
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)


@pytest.fixture(scope="module")
def begun() -> Any:
    """(learner, optimizer, mesh, the state before the first step, and that on the host)."""
    learner, mesh = EvenTokens().build(learner_of(LLAMA).model), make_mesh({"fsdp": 4, "tensor": 2})
    chain = ADAMW.build(4, learner.axes())
    state = init_state(learner, chain, mesh, 0)
    return learner, chain, mesh, state, jax.device_get(state)


def test_what_is_frozen_is_sharded_and_handed_on(begun: Any) -> None:
    learner, chain, mesh, state, host = begun
    _, placed = state_shardings(learner, chain, mesh)
    for leaf, wanted in zip(jax.tree.leaves(state.frozen), jax.tree.leaves(placed.params), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    step, rollout = build_step(learner, chain, mesh), build_rollout(learner, mesh, seed=0)
    for n in range(3):
        state, _ = step(state, rollout(n, state, batch(n)))
    jax.tree.map(np.testing.assert_array_equal, host.frozen, jax.device_get(state.frozen))


def test_a_rollout_follows_from_seed_step_and_parameters(begun: Any) -> None:
    learner, _, mesh, _, state = begun
    other = replace(state, params=times(2, state.params))

    def drawn(seed: int, step: int, state: Any) -> Any:
        return np.asarray(build_rollout(learner, mesh, seed)(step, state, batch(0))["targets"])

    first = drawn(0, 3, state)
    np.testing.assert_array_equal(first, drawn(0, 3, state))
    for another in (drawn(1, 3, state), drawn(0, 4, state), drawn(0, 3, other)):
        assert (first != another).any()
    keys = [rollout_key(0, 3), jax.random.fold_in(jax.random.key(0), 3)]  # the other is the step's
    assert (jax.random.key_data(keys[0]) != jax.random.key_data(keys[1])).any()


def test_pretraining_has_no_rollout_and_nothing_frozen() -> None:
    learner, mesh = learner_of(LLAMA), make_mesh({"data": 8})
    assert build_rollout(learner, mesh, seed=0) is no_rollout and not learner.has_rollout
    given = batch(0)
    assert no_rollout(0, None, given) is given  # type: ignore[arg-type]
    assert state_shardings(learner, ADAMW.build(4, learner.axes()), mesh)[0].frozen == ()


def test_runs_with_rollouts_take_turns(declared: Experiment, tmp_path: Path) -> None:
    run = course.Run(declared, course.claim(tmp_path, declared, ""))
    assert obstacle([run]) == "each batch is made with the run's own parameters"
