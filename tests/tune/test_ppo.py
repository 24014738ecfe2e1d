"""PPO: every detail of its rewards, advantages, losses and coefficient, and runs that go on with the same bits."""

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.loader import Batches, prepare
from lm.decode.sampling import Sampling
from lm.experiment import Experiment
from lm.model.families import scorer
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.pretrained import read_config
from lm.run import course
from lm.sharding.mesh import make_mesh
from lm.tune import gae
from lm.tune.kl_control import AdaptiveKL, FixedKL
from lm.tune.lora import LoRA
from lm.tune.on_policy import last_scores
from lm.tune.ppo import PPO, STATE
from lm.tune.reward_functions import RewardFunction
from tests.model.reference import lively
from tests.tiny import lines
from tests.tune.rollouts import (
    COMPUTE,
    ENDS,
    KEY,
    LENGTH,
    MESHES,
    NEW,
    ROWS,
    TEXTS,
    batches,
    gradient_of,
    metrics_of,
    stepped,
    stopped_and_resumed,
    times,
)
from tests.tune.sums import Digits, summing

MODEL = replace(TEXTS, output=replace(TEXTS.output, scores=1))
SCORER = scorer(TEXTS)


@pytest.fixture(scope="module")
def data(file: Path) -> Batches:
    return batches(file, method())


def method(**given: Any) -> PPO:
    return PPO(**{"rewards": (Digits(),), "max_new_tokens": NEW, "sampling": ENDS, "epochs": 1, **given})


@cache
def learner_of(data: Batches, trains: Any = None, **given: Any) -> Any:
    learner = method(**given).build(Transformer(MODEL, COMPUTE), data)
    return learner if trains is None else trains.wrap(learner)


@pytest.fixture(scope="module")
def begun(data: Batches) -> Any:
    """(params, frozen) of which the policy has left the reference, and the value head is at work; some of its
    completions end, and some have digits."""
    params, frozen = jax.jit(learner_of(data).init)(KEY, lively(MODEL, seed=17))
    moved = times(1.1, params)
    return {**moved, "head": {**moved["head"], "score": moved["head"]["score"] + np.float32(0.1)}}, frozen


def rolled(learner: Any, begun: Any, data: Batches, step: int = 0) -> Any:
    return learner.rollout(*begun, data.batch(step), KEY)


def loss_of(learner: Any, begun: Any, batch: Any, key: Any = None) -> Any:
    return metrics_of(learner, *begun, batch, key)


# ---------------------------------------------------------------- arrays

MASK = np.array([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
RNG = np.random.default_rng(0)
X, V = RNG.normal(size=(2, *MASK.shape))


def test_the_score_is_at_the_last_real_token_and_kl_costs() -> None:
    found = gae.token_rewards(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(MASK.shape), 0.5, MASK)
    expected = [[0, -0.5, -0.5, 0.5, 0], [-0.5, 1.5, 0, 0, 0], [0, 0, 2.5, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_by_the_biased_variance_of_real_tokens(shift_mean: bool) -> None:
    found = gae.whiten(X, MASK, shift_mean)[MASK]
    assert found.std() == pytest.approx(1, abs=1e-6)
    assert found.mean() == pytest.approx(0 if shift_mean else X[MASK].mean(), abs=1e-6)
    noise = gae.whiten(np.where(MASK, X, 1e3), MASK, shift_mean)
    np.testing.assert_allclose(noise[MASK], found)
    assert not noise[~MASK].any() and np.isfinite(gae.whiten(X, MASK & False)).all()


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_advantages_are_the_sums_of_the_paper(discount: float, decay: float) -> None:
    expected = np.zeros(MASK.shape)
    for row, mask in enumerate(MASK):
        (at,) = np.nonzero(mask)
        r, v = X[row, at], np.append(V[row, at], 0)
        delta = r + discount * v[1:] - v[:-1]
        for i, t in enumerate(at):
            expected[row, t] = sum((discount * decay) ** k * d for k, d in enumerate(delta[i:]))
    found = gae.advantages(X, np.where(MASK, V, 99), MASK, discount, decay)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_value_is_held_near_the_old_one() -> None:
    values, old, returns = (jnp.array(x) for x in ([1.0, 0.1, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.5, 3.0]))
    loss, clipped = jax.jit(gae.clipped_value_loss)(values, old, returns, 0.2)
    np.testing.assert_allclose(loss, [0.5 * 0.8**2, 0.5 * 0.9**2, 0.5 * 0.5**2, 0.5 * 2.8**2], rtol=1e-6)
    assert clipped.tolist() == [True, False, False, True]
    gradient = jax.jit(jax.grad(lambda v: gae.clipped_value_loss(v, old, returns, 0.2)[0].sum()))(values)
    np.testing.assert_allclose(gradient, [0, -0.9, 0.5, 0], atol=1e-6)


def test_the_coefficient_is_drawn_to_its_target() -> None:
    kl, one = AdaptiveKL(), jnp.float32(0.15)
    assert (kl.coefficient, kl.target, kl.horizon) == (0.15, 6.0, 10_000.0)
    found = [float(kl.after(one, jnp.float32(x), jnp.float32(64))) for x in (6.0, 6.6, 60.0, 0.0)]
    near = [1.0, 1 + 0.1 * 64 / 10_000, 1 + 0.2 * 64 / 10_000, 1 - 0.2 * 64 / 10_000]
    np.testing.assert_allclose(found, [0.15 * x for x in near], rtol=1e-6)
    assert FixedKL(0.3).after(one, jnp.float32(60), jnp.float32(64)) is one


# ---------------------------------------------------------------- what is learned from


def test_the_value_head_starts_at_zero_and_the_policy_at_its_reference(data: Batches) -> None:
    learner = learner_of(data)
    start = jax.jit(learner.init)(KEY, lively(MODEL))
    batch = rolled(learner, start, data)
    assert not start[0]["head"]["score"].any() and not batch["values"].any()
    np.testing.assert_array_equal(batch["old_logprobs"], batch["reference_logprobs"])
    _, metrics, gradient = gradient_of(learner, *start, batch)
    assert metrics["importance_ratio"] == pytest.approx(1, abs=1e-5) and metrics["kl"] == 0
    assert np.abs(gradient["head"]["score"]).max() > 0


def test_rewards_advantages_and_returns_are_of_their_tokens(data: Batches, begun: Any) -> None:
    learner = learner_of(data, kl=FixedKL(0.3), whiten_rewards=True, discount=0.9, decay=0.8)
    state = {**begun[1][STATE], "kl_coefficient": jnp.full(1, 0.3)}
    batch = rolled(learner, (begun[0], {**begun[1], STATE: state}), data)
    mask = batch["weights"] > 0
    cut = batch["truncated"] > 0
    assert cut.any() and not cut.all()
    np.testing.assert_allclose(batch["score"], np.where(cut, -1, batch["reward"]))
    kl = batch["old_logprobs"] - batch["reference_logprobs"]
    assert np.abs(kl).max() > 0.01
    rewards = gae.whiten(gae.token_rewards(batch["score"], kl, 0.3, mask), mask, shift_mean=False)
    found = gae.advantages(rewards, batch["values"], mask, 0.9, 0.8)
    np.testing.assert_allclose(batch["returns"], np.where(mask, found + batch["values"], 0), atol=1e-5)
    np.testing.assert_allclose(batch["advantages"], gae.whiten(found, mask), atol=1e-5)


def test_a_value_is_of_what_is_there_before_its_token(data: Batches, begun: Any) -> None:
    """Of the row alone, up to the token before: neither the token itself nor what pads it changes it."""
    learner = learner_of(data)
    batch = rolled(learner, begun, data)
    row, there = 3, batch["segment_ids"][3] > 0
    inputs = jnp.asarray(batch["tokens"][row][there][None])
    scores = jax.jit(lambda p, ids: learner.model.scores(p, learner.model.hidden(p, Inputs(ids)).x))
    expected = np.asarray(scores(begun[0], inputs))[0, :, 0]
    real = batch["weights"][row][there] > 0
    np.testing.assert_allclose(batch["values"][row][there][real], expected[real], atol=1e-5)
    assert not batch["values"][batch["weights"] == 0].any()
    for at in np.flatnonzero(batch["weights"][row])[1:]:
        changed = batch["tokens"].copy()
        changed[row, at + 1 :] = 9
        again = learner.values(begun[0], {**batch, "tokens": changed})
        np.testing.assert_allclose(again[row, at], batch["values"][row, at], atol=1e-5)


def test_log_probabilities_are_over_the_sampling_temperature(data: Batches, begun: Any) -> None:
    learner = learner_of(data, sampling=Sampling(0.5))
    batch = rolled(learner, begun, data)
    there = batch["segment_ids"][0] > 0
    given = jax.jit(lambda params, ids: jax.nn.log_softmax(learner.model(params, ids) / 0.5))
    for params, name in zip(begun, ("old_logprobs", "reference_logprobs"), strict=True):
        logprobs = np.asarray(given(params, batch["tokens"][0][there][None]))[0]
        expected = logprobs[np.arange(there.sum()), batch["targets"][0][there]]
        real = batch["weights"][0][there] > 0
        np.testing.assert_allclose(batch[name][0][there][real], expected[real], atol=1e-4)


def test_there_is_no_dropout_in_policy_critic_or_reference(data: Batches, begun: Any) -> None:
    learner = learner_of(data)
    batch = rolled(learner, begun, data)
    assert loss_of(learner, begun, batch, jax.random.key(3))[0] == loss_of(learner, begun, batch)[0]
    _, frozen = begun
    same = learner.rollout({**frozen}, frozen, data.batch(0), KEY)
    np.testing.assert_array_equal(same["old_logprobs"], same["reference_logprobs"])


def test_the_loss_is_the_mean_over_real_tokens(data: Batches, begun: Any) -> None:
    given = dict(value_weight=0.3, entropy=0.2, clip=0.05, clip_value=0.05)
    learner = learner_of(data, **given)
    batch = rolled(learner, begun, data)
    far = (times(1.1, begun[0]), begun[1])
    loss, metrics = loss_of(learner, far, batch)
    mask, new = batch["weights"] > 0, learner.score(far[0], batch)
    ratio, a = np.exp(new - batch["old_logprobs"]), batch["advantages"]
    policy = -np.minimum(ratio * a, np.clip(ratio, 0.95, 1.05) * a) * batch["importance_weights"]
    values, old = learner.values(far[0], batch), batch["values"]
    near = np.clip(values, old - 0.05, old + 0.05)
    value = 0.5 * np.maximum((values - batch["returns"]) ** 2, (near - batch["returns"]) ** 2)
    assert metrics["policy_loss"] == pytest.approx(policy[mask].mean(), abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(value[mask].mean(), rel=1e-4)
    assert loss == pytest.approx(policy[mask].mean() + 0.3 * value[mask].mean() - 0.2 * metrics["entropy"], abs=1e-4)
    assert metrics["clip_ratio"] > 0 and metrics["value_clip_ratio"] > 0
    kl = (batch["old_logprobs"] - batch["reference_logprobs"]).sum(1)
    assert metrics["kl"] == pytest.approx(kl.mean(), rel=1e-4)


def test_a_bonus_raises_the_entropy(data: Batches, begun: Any) -> None:
    learner = learner_of(data, entropy=1.0, value_weight=0.0)
    batch = rolled(learner, begun, data)
    batch["advantages"] = np.zeros_like(batch["advantages"])
    _, before, gradient = gradient_of(learner, *begun, batch)
    after = jax.tree.map(lambda x, g: x - np.float32(1e-2) * g, begun[0], gradient)
    assert gradient_of(learner, after, begun[1], batch)[1]["entropy"] > before["entropy"] + 1e-5


@dataclass(frozen=True)
class Silent(RewardFunction):
    """Has nothing to say of completions that begin alike."""

    def __call__(self, prompts: Any, completions: Any, records: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completions))]


def test_completions_without_a_reward_carry_no_loss(data: Batches, begun: Any) -> None:
    batch = rolled(learner_of(data, rewards=(Silent(),)), begun, data)
    assert batch["weights"][::2].any(1).all() and not batch["weights"][1::2].any()
    assert all(np.isfinite(array).all() for array in batch.values())


@dataclass(frozen=True)
class Long(RewardFunction):
    """The tokens of a completion."""

    def __call__(self, prompts: Any, completions: Any, records: Any) -> list[float | None]:
        return [float(text.tokens) for text in completions]


def test_rewards_are_normalized_by_the_first_batch_of_the_reference(data: Batches) -> None:
    learner = learner_of(data, rewards=(Long(),), normalize=True, missing_stop=None)
    params, frozen = jax.jit(learner.init)(KEY, lively(MODEL))
    first = rolled(learner, (params, frozen), data)
    assert first["score"].mean() == pytest.approx(0, abs=1e-6) and first["score"].std() == pytest.approx(1, abs=1e-5)
    frozen = learner.advance(frozen, first)
    second = rolled(learner, (params, frozen), data, 1)
    expected = (second["reward"] - first["reward"].mean()) / first["reward"].std()
    np.testing.assert_allclose(second["score"], expected, atol=1e-5)
    np.testing.assert_allclose(learner.advance(frozen, second)[STATE]["reward_mean"], first["reward"].mean(), rtol=1e-6)


def test_a_reward_model_reads_the_completion_to_its_end(data: Batches, begun: Any) -> None:
    learner = learner_of(data, rewards=(), scorer_model=SCORER, missing_stop=None)
    params, frozen = jax.jit(learner.init)(KEY, lively(MODEL), {"scorer": lively(SCORER)})
    assert not params["head"]["score"].any() and frozen["scorer"]["head"]["score"].any()
    batch, model = rolled(learner, (params, frozen), data), learner.scorer
    scores = jax.jit(lambda ids: model.scores(frozen["scorer"], model.hidden(frozen["scorer"], Inputs(ids)).x))
    for row in range(ROWS):
        prompt = data.batch(0)["tokens"][row][data.batch(0)["segment_ids"][row] > 0]
        ids = [*prompt.tolist(), *batch["targets"][row][batch["weights"][row] > 0].tolist()]
        padded = np.array([ids + [0] * (LENGTH - len(ids))], np.int32)  # one program for all lengths
        assert batch["score"][row] == pytest.approx(np.asarray(scores(padded))[0, len(ids) - 1, 0], abs=1e-5)
    np.testing.assert_array_equal(batch["scorer"], batch["reward"])
    both = learner_of(data, scorer_model=SCORER)
    batch = rolled(both, (params, frozen), data)
    np.testing.assert_allclose(batch["reward"], batch["Digits"] + batch["scorer"], atol=1e-6)
    held = both.heldout_rollout(params, frozen, data.batch(0), KEY)
    np.testing.assert_array_equal(held["reward"], batch["reward"])
    nothing = {**batch, "weights": np.zeros_like(batch["weights"])}
    assert not last_scores(model, frozen["scorer"], nothing).any()


# ---------------------------------------------------------------- updates, adapters, meshes


def test_under_adapters_the_reference_is_the_model_without_them(data: Batches) -> None:
    learner = learner_of(data, LoRA(rank=2), kl=AdaptiveKL(horizon=50.0), scorer_model=SCORER)
    params, frozen = jax.jit(learner.init)(KEY, lively(MODEL), {"scorer": lively(SCORER)})
    assert "score" in params["head"] and not params["head"]["score"].any()
    assert set(frozen["method"]) == {"head", "scorer", STATE}
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), params)
    batch = learner.rollout(moved, frozen, data.batch(0), KEY)
    start = jax.jit(learner.model_params)(params, frozen)
    np.testing.assert_allclose(batch["reference_logprobs"], learner.learner.score(start, batch), atol=1e-5)
    assert np.abs(batch["reference_logprobs"] - batch["old_logprobs"]).max() > 0.01
    after = learner.advance(frozen, batch)
    assert after["method"][STATE]["kl_coefficient"] != frozen["method"][STATE]["kl_coefficient"]
    assert after["base"] is frozen["base"] and after["method"]["scorer"] is frozen["method"]["scorer"]


def test_several_updates_of_a_rollout_and_a_coefficient_after_them(data: Batches) -> None:
    learner = learner_of(data, minibatches=2, epochs=2, kl=AdaptiveKL(target=1.0, horizon=80.0))
    state, metrics = stepped(learner, data, 2)
    assert int(state.step) == 2 and metrics["importance_ratio"] != pytest.approx(1, abs=1e-5)
    first = 0.15 * (1 - 0.2 * ROWS / 80)  # the first rollout is the reference's, of KL 0
    assert metrics["kl_coefficient"] == pytest.approx(first, rel=1e-5)
    expected = first * (1 + np.clip(metrics["kl"] / 1.0 - 1, -0.2, 0.2) * ROWS / 80)
    assert float(state.frozen[STATE]["kl_coefficient"][0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_three_updates_on_eight_devices_are_those_of_one(data: Batches, shape: dict[str, int]) -> None:
    learner = learner_of(data, scorer_model=SCORER, kl=AdaptiveKL(), normalize=True)
    (one, first), (many, second) = (stepped(learner, data, 3, mesh) for mesh in (None, make_mesh(shape)))
    assert first == {name: pytest.approx(x, rel=2e-3, abs=2e-4) for name, x in second.items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), one.params, jax.device_get(many.params))


ZERO = (("reward_mean", 0.0), ("reward_std", 0.0))
TURNED: dict[str, Any] = {
    "rewards": (Silent(),),
    "scorer_model": SCORER,
    "max_new_tokens": 5,
    "sampling": Sampling(0.5),
    "normalize": True,
    "missing_stop": None,
    "kl": FixedKL(0.5),
    "whiten_rewards": True,
    "discount": 0.5,
    "decay": 0.5,
    "clip": 0.01,
    "clip_value": 0.01,
    "value_weight": 0.5,
    "entropy": 0.5,
    "truncate_importance": 0.5,
}


@pytest.mark.parametrize("name", TURNED)
def test_every_field_changes_the_gradient(name: str, data: Batches, begun: Any) -> None:
    """By what it makes of completions, or in the loss."""
    found = []
    for given in ({}, {name: TURNED[name]}):
        made = method(**given)
        own = prepare(data.data, LENGTH, ROWS, objective=made.objective, tokenizer=data.tokenizer)
        learner = made.build(Transformer(MODEL, COMPUTE), own)
        state = {name: np.full(1, x, np.float32) for name, x in (("kl_coefficient", made.kl.coefficient), *ZERO)}
        frozen = {**begun[1], "scorer": lively(SCORER), STATE: state}
        batch = rolled(learner, (begun[0], frozen), own)
        program = str(jax.make_jaxpr(learner.loss)(*begun, batch, KEY))
        found.append({"program": program, **{name: a.tolist() for name, a in batch.items()}})
    assert found[0] != found[1]
    assert set(TURNED) < {field.name for field in fields(PPO)}


# ---------------------------------------------------------------- runs


def ppo(file: Path, **given: Any) -> Experiment:
    made = method(**{"kl": AdaptiveKL(horizon=100.0), "normalize": True, "epochs": 2, **given})
    return replace(summing(file).replace(model=dict(output=dict(scores=1))), method=made)


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(ppo(file), folder)
    return folder


@pytest.mark.slow
def test_stopped_and_resumed_it_has_the_same_bits(
    finished: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer's moments, the coefficient and what normalizes rewards included."""
    assert stopped_and_resumed(lambda: ppo(file), tmp_path / "run", monkeypatch) == lines(finished)
    coefficients = [line["kl_coefficient"] for line in lines(finished) if "kl_coefficient" in line]
    assert len(set(coefficients)) == len(coefficients) and coefficients[0] == pytest.approx(0.15)
    assert "[reward " in json.loads((finished / "samples.json").read_text())[0]["text"]


@pytest.mark.slow
def test_a_run_reads_the_reward_model_at_its_path(finished: Path, file: Path, tmp_path: Path) -> None:
    """Another run's value head, here."""
    given = dict(rewards=(), scorer=str(finished), scorer_model=read_config(finished))
    course.train(ppo(file, **given).replace(steps=2), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "models.json").read_text())
    assert recorded["scorer"]["path"] == str(finished)
    assert lines(tmp_path / "run")[0]["scorer"] != 0
    drawn = ppo(file, **{**given, "scorer": None}).replace(steps=2)
    course.train(drawn, tmp_path / "drawn")
    assert lines(tmp_path / "drawn")[0]["scorer"] != lines(tmp_path / "run")[0]["scorer"]


WRONG = [
    (dict(model=dict(output=dict(scores=0))), "model.output.scores=0: PPO reads one score a token, set it to 1"),
    (dict(method=dict(rewards=())), "method.rewards is empty: give a reward function, or a reward model"),
    (dict(method=dict(scorer="runs/reward")), "method.scorer='runs/reward' needs its config: set method.scorer_model"),
    (dict(method=dict(scorer_model=replace(SCORER, vocab=99))), "method.scorer_model.vocab 99: expected the same"),
    (dict(method=dict(scorer_model=TEXTS)), "method.scorer_model.output.scores=0"),
    (dict(method=dict(sampling=Sampling(0.0))), "method.sampling is greedy"),
    (dict(method=dict(kl=AdaptiveKL(target=0.0))), "method.kl.target=0.0: expected more than 0"),
    (dict(method=dict(on_reward_error="go")), "method.on_reward_error='go'"),
]


@pytest.mark.parametrize(("change", "reason"), WRONG)
def test_what_cannot_be_learned_from_is_refused_in_a_line(change: Any, reason: str, file: Path) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        ppo(file).replace(**change)
    assert "\n" not in str(raised.value)
