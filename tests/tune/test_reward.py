"""Reward models: TRL's loss, calibration, both sides read to their ends, runs, starts and meshes."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.loader import prepare
from lm.data.objective import Rows
from lm.data.preferences import WholePairs
from lm.experiment import Experiment
from lm.machine.monitor import Bar
from lm.model.families import bert, llama, scorer
from lm.model.transformer import Transformer
from lm.plan.compile import batch_shapes
from lm.pretrained import Pretrained, load
from lm.run import course
from lm.run.evaluate import evaluate
from lm.sharding.batches import place_batch
from lm.sharding.mesh import make_mesh
from lm.text.tokenizer import Bytes, SentencePieceSpec
from lm.train.step import build_step, init_state, state_shardings
from lm.tune.lora import LoRA
from lm.tune.reward import BINS, Reward, calibration_error, reliability, reward_loss
from lm.tune.start import Start
from lm.tune.trains import Only
from tests.model.reference import SIMPLE, lively
from tests.tiny import experiment, lines, of, write_texts
from tests.tune.ranked import ranking, write

TRL: dict[str, Any] = json.loads((Path(__file__).parent / "trl_reward.json").read_text())


@pytest.mark.parametrize("name", TRL["cases"])
def test_loss_gradient_and_metrics_are_trl_s(name: str) -> None:
    case, rewards = TRL["cases"][name], jnp.asarray(TRL["rewards"])
    weights = jnp.full(len(rewards), 1 / len(rewards))
    margins = jnp.asarray(TRL["margins"]) * case["margins"]

    def loss(rewards: jax.Array) -> Any:
        return reward_loss(rewards, margins, weights, case["centering"])

    (total, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(rewards)
    assert float(total) == pytest.approx(case["loss"], rel=1e-5)
    np.testing.assert_allclose(gradient, case["gradient"], atol=1e-6)
    for own, theirs in (("accuracy", "accuracy"), ("margin", "margin"), ("mean_reward", "mean_reward")):
        assert float(metrics[own]) == pytest.approx(case[theirs], rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(TRL["cases"]["margins" if case["margins"] else "plain"]["loss"])


def summed(difference: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    return {name: float(x) for name, x in jax.jit(reliability)(difference, weights).items()}


def test_calibration_is_the_distance_of_shares_from_probabilities() -> None:
    rng = np.random.default_rng(0)
    difference, weights = rng.normal(0, 2, 5000).astype(np.float32), rng.integers(0, 2, 5000).astype(np.float32)
    p = 1 / (1 + np.exp(-np.abs(difference.astype(np.float64))))
    expected, kept = 0.0, weights > 0
    for low in np.arange(BINS) / (2 * BINS) + 0.5:
        inside = kept & (p >= low) & (p < low + 0.5 / BINS)
        if inside.any():
            expected += abs((difference[inside] > 0).mean() - p[inside].mean()) * inside.sum() / kept.sum()
    sums = summed(difference, weights)
    assert calibration_error(sums) == pytest.approx(expected, rel=1e-3)
    signs = np.where(rng.random(5000) < p, 1, -1)  # as often right as it says
    fair = summed(np.abs(difference) * signs, np.ones(5000))
    sure = summed(np.full(100, 20.0), np.arange(100) % 2.0)
    even = summed(np.zeros(4), np.ones(4))
    assert calibration_error(fair) < 0.03 and calibration_error(sure) == pytest.approx(0, abs=1e-6)
    assert calibration_error(even) == 0


# ---------------------------------------------------------------- rows


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return ranking(write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl"))


def alone(model: Pretrained, rows: Rows) -> np.ndarray:
    """The rewards of each side of the rows' pairs, read by itself."""
    texts = [
        rows.tokens[i][rows.documents[i] == n].tolist()
        for i in range(len(rows.tokens))
        for n in range(1, rows.documents[i].max() + 1)
    ]
    assert all(ids[-1] == 257 for ids in texts)  # the eos is in the row
    return model.score_ids(texts).reshape(-1, 2)


@pytest.mark.parametrize("length", [16, 17, 31])
def test_packed_is_alone_and_read_at_the_eos(declared: Experiment, length: int) -> None:
    """Whether or not the last side ends where its row does."""
    data = prepare(declared.data, length, 4, objective=declared.method.objective, tokenizer=Bytes().make([]))
    cfg = scorer(llama(vocab=258, layers=2, width=16, heads=2, mlp=32, context=32))
    model = Pretrained(cfg, lively(cfg), None, Transformer(cfg, SIMPLE))
    rows, learner = data.rows(0), Reward().build(model.model)
    batch = declared.method.objective.batch(rows, data.context)
    assert batch["tokens"].shape == (4, length) and (batch["tokens"][batch["ends"] > 0] == 257).all()
    assert batch["ends"].sum() == 2 * batch["weights"].sum() > 0
    packed, _ = jax.jit(learner._rewards)(model.params, {n: jnp.asarray(a) for n, a in batch.items()}, None)
    found = np.asarray(packed)[batch["weights"] > 0]
    np.testing.assert_allclose(found, alone(model, rows), rtol=1e-4, atol=1e-5)
    assert not np.asarray(packed)[batch["weights"] == 0].any()


def test_a_plan_knows_the_shapes(declared: Experiment) -> None:
    assert batch_shapes(declared)["tokens"][0] == (declared.rows, 32) and "targets" not in batch_shapes(declared)
    assert WholePairs().target_name == "pair"


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def finished(declared: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(declared, folder)
    return folder


def test_a_run_learns_the_rule_is_measured_and_scores_texts(finished: Path) -> None:
    last, losses = lines(finished)[-1], of(lines(finished), "loss")
    assert losses[12] < losses[1] - 0.1 and last["eval/pairs/accuracy"] > 0.8
    again = evaluate(finished)["pairs"]
    for name in ("loss", "accuracy", "calibration_error", "margin", "mean_reward"):
        assert again[name] == pytest.approx(last[f"eval/pairs/{name}"], rel=1e-3)
    assert 0.2 < again["the longer one"] < 0.8
    model = load(finished)
    good, bad = model.score([dict(prompt="a? ", completion="aaa"), "a? bbb"])
    assert good > bad
    assert (finished / "samples.txt").read_text().startswith("chosen, ")
    model.save(finished.parent / "published")
    published = load(finished.parent / "published")
    assert published.architecture is not None and published.architecture.name == "LlamaForSequenceClassification"
    assert float(published.score(["a? bbb"])[0]) == pytest.approx(bad, abs=0.03)  # a run is computed in bfloat16


@pytest.mark.slow
def test_stopped_it_resumes_to_the_same_bits(
    declared: Experiment, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(Bar, "update", lambda _, n, *__: n == 5 and [signal.raise_signal(one) for one in once])
        with pytest.raises(course.Interrupted):
            course.train(declared, tmp_path)
    assert max(of(lines(tmp_path), "loss")) < 12
    course.train(declared, tmp_path)
    assert lines(tmp_path) == lines(finished)


MESHES = [{"data": 8}, pytest.param({"fsdp": 4, "context": 2}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_make_the_first_three_updates_of_one(declared: Experiment, mesh: Any) -> None:
    data = prepare(declared.data, 32, 8, objective=declared.method.objective, tokenizer=Bytes().make([]))
    learner = declared.method.build(Transformer(declared.model, SIMPLE), data)
    chain, one, found = declared.optimizer.build(3, learner.axes()), make_mesh({"data": 1}, jax.devices()[:1]), []
    begun = jax.device_get(init_state(learner, chain, one, 0))
    for over in (one, make_mesh(mesh)):
        state = jax.device_put(begun, state_shardings(learner, chain, over)[1])
        step = build_step(learner, chain, over)
        for n in range(3):
            state, metrics = step(state, place_batch(data.batch(n), over))
            found.append([float(metrics[key]) for key in ("loss", "accuracy", "margin", "mean_reward", "grad_norm")])
    np.testing.assert_allclose(found[3:], found[:3], rtol=2e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("trains", [LoRA(rank=2), Only("score|query")], ids=["lora", "only"])
def test_a_model_of_texts_is_a_start_and_its_score_is_new(
    declared: Experiment, tmp_path: Path, trains: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = replace(experiment(write_texts(tmp_path / "texts")), steps=2, sample_tokens=0)
    texts = texts.replace(model=dict(layers=1))
    course.train(texts, tmp_path / "base")
    data = replace(declared.data, tokenizer=SentencePieceSpec())
    start, model = Start(str(tmp_path / "base")), scorer(texts.model)
    begun = replace(declared, start=start, trains=trains, steps=3, model=model, data=data)
    run = course.Run(begun, course.claim(tmp_path / "run", begun, ""))
    state, base = run.initial_state(), load(tmp_path / "base")
    assert "has no output of scores, so that it begins with random values" in capsys.readouterr().out
    merged = run.prepared.learner.model_params(state.params, state.frozen)
    score = np.asarray(merged["head"].pop("score"))
    assert score.shape == (16, 1) and 0.1 < score.std() * 17**0.5 < 3
    expected = {**base.params, "head": {n: x for n, x in base.params["head"].items() if n != "kernel"}}
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
    course.train(begun, tmp_path / "run")
    moved = np.asarray(load(tmp_path / "run").params["head"]["score"])
    assert np.abs(moved - score).max() > 1e-3


def test_what_it_cannot_learn_is_refused(declared: Experiment) -> None:
    plain = llama(vocab=258, layers=1, width=8, heads=1, mlp=8, context=16)
    for cfg in (plain, scorer(plain, 2), scorer(bert(vocab=258, layers=1, width=8, heads=1, mlp=8, context=16))):
        with pytest.raises(ValueError, match=r"Reward learns one score of a decoder, .*: take scorer\(…\) of"):
            Reward().check(cfg)
    with pytest.raises(ValueError, match="method.centering=-1"):
        Reward(centering=-1.0)
