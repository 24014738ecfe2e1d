"""Online DPO: the pairs are the best and the worst of each prompt's completions, and the loss is DPO's of them."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.loader import Batches
from lm.decode.sampling import Sampling
from lm.model.transformer import Transformer
from lm.run import course
from lm.run.smoke import smoke
from lm.sharding.mesh import make_mesh
from lm.tune.dpo import dpo_loss, ipo_loss
from lm.tune.on_policy_method import OnPolicyMethod
from lm.tune.online_dpo import OnlineDPO, ranked
from lm.tune.reward_functions import RewardFunction
from tests.model.reference import lively
from tests.tiny import lines, of
from tests.tune.rollouts import (
    COMPUTE,
    ENDS,
    KEY,
    MESHES,
    NEW,
    ROWS,
    TEXTS,
    batches,
    gradient_of,
    stepped,
    stopped_and_resumed,
    times,
)
from tests.tune.sums import Digits, summing

NAN = float("nan")


@dataclass(frozen=True)
class Places(RewardFunction):
    """By their places in the batch: 0, 5, 3, 1 and again; those of a first group are `equal`, where that is asked."""

    equal: bool = False

    def __call__(self, prompts: Any, completions: Any, records: Any) -> list[float | None]:
        return [0.0 if self.equal and i < 4 else (0.0, 5.0, 3.0, 1.0)[i % 4] for i in range(len(completions))]


def method(**given: Any) -> OnlineDPO:
    return OnlineDPO(**{"rewards": (Places(),), "group": 4, "max_new_tokens": NEW, "sampling": ENDS, **given})


@pytest.fixture(scope="module")
def data(file: Path) -> Batches:
    return batches(file, method())


@pytest.fixture(scope="module")
def begun(data: Batches) -> Any:
    """(params, frozen) of which the policy has left the reference."""
    params, frozen = jax.jit(learner_of(data).init)(KEY, lively(TEXTS))
    return times(1.1, params), frozen


def learner_of(data: Batches, **given: Any) -> Any:
    return method(**given).build(Transformer(TEXTS, COMPUTE), data)


def rolled(learner: Any, begun: Any, data: Batches) -> Any:
    return learner.rollout(*begun, data.batch(0), KEY)


def test_rows_are_ranked_and_pairs_stay_in_one_micro_batch() -> None:
    rewards = np.array([1, 3, 2, 0, *(4, 4, 4, 4), *(NAN, 2, NAN, 1), *(NAN, NAN, 5, NAN)], float)
    order = ranked(rewards, 4)
    assert sorted(order.tolist()) == list(range(16))
    best, worst = order[:4], order[4:8]
    assert (best // 4).tolist() == (worst // 4).tolist() == [0, 1, 2, 3]
    assert best[[0, 2, 3]].tolist() == [1, 9, 14] and worst[[0, 2]].tolist() == [3, 11]
    for parts in (2, 4):
        for part in range(parts):
            sides = order[part::parts].reshape(4, -1)
            assert (sides[0] // 4).tolist() == (sides[1] // 4).tolist()


@pytest.mark.parametrize(("name", "loss"), [("sigmoid", dpo_loss), ("ipo", ipo_loss)])
def test_the_loss_is_dpo_s_of_the_best_and_the_worst(name: str, loss: Any, data: Batches, begun: Any) -> None:
    """Of a prompt whose rewards differ; of log-probabilities over the sampling temperature."""
    sampling = Sampling(0.7, logit_bias=ENDS.logit_bias)
    learner = learner_of(data, rewards=(Places(equal=True),), loss=name, beta=0.3, sampling=sampling)
    drawn = learner.draw(*begun, data.batch(0), KEY)
    best, worst = 4 + 1, 4 + 0
    ratios = learner.score(begun[0], drawn.batch) - learner.score(begun[1], drawn.batch)
    sums, tokens = ratios.sum(1), (drawn.batch["weights"] > 0).sum(1)
    own = sums / tokens if name == "ipo" else sums
    found, metrics, gradient = gradient_of(learner, *begun, learner.learned(*begun, drawn))
    assert found == pytest.approx(float(loss(own[best], own[worst], 0.3)), abs=1e-5)
    assert metrics["margin"] == pytest.approx(0.3 * (sums[best] - sums[worst]), abs=1e-5)
    assert metrics["chosen_reward"] == pytest.approx(0.3 * sums[best], abs=1e-5)
    assert metrics["accuracy"] == (sums[best] > sums[worst]) and metrics["zero_std"] == 0.5
    assert metrics["reward"] == pytest.approx(9 / 8) and metrics["kl"] == pytest.approx(sums.mean(), abs=1e-5)
    after = jax.tree.map(lambda x, g: x - np.float32(1e-5) * g, begun[0], gradient)
    moved = (learner.score(after, drawn.batch) - learner.score(begun[0], drawn.batch)).sum(1)
    assert moved[best] - moved[worst] > 0 or name == "ipo"


def test_prompts_without_a_preference_move_nothing(data: Batches, begun: Any) -> None:
    learner = learner_of(data, rewards=(Digits(weight=0.0),))
    batch = rolled(learner, begun, data)
    loss, metrics, gradient = gradient_of(learner, *begun, batch)
    assert loss == 0 and metrics["zero_std"] == 1 and not batch["pair_weights"].any()
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_minibatches_are_of_whole_pairs(data: Batches, begun: Any) -> None:
    learner = learner_of(data, minibatches=2)
    batch = rolled(learner, begun, data)
    whole = gradient_of(learner, *begun, batch)[2]
    halves = [gradient_of(learner, *begun, {n: a[i::2] for n, a in batch.items()})[2] for i in (0, 1)]
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, 1e-3, 1e-5), whole, *halves)


OWN: dict[str, Any] = {"group": 2, "beta": 0.2, "loss": "hinge", "label_smoothing": 0.1}


@pytest.mark.parametrize("name", OWN)
def test_every_field_changes_the_gradient(name: str, file: Path, data: Batches, begun: Any) -> None:
    changed = method(**{name: OWN[name]})
    other = changed.build(Transformer(TEXTS, COMPUTE), batches(file, changed))
    programs = []
    for learner in (learner_of(data), other):
        batch = {name: jnp.asarray(array) for name, array in learner.data.batch(0).items()}
        programs.append(str(jax.make_jaxpr(learner.loss)(*begun, batch, KEY)))
    assert programs[0] != programs[1]
    assert set(OWN) == {field.name for field in fields(OnlineDPO)} - {field.name for field in fields(OnPolicyMethod)}


WRONG = [
    (
        dict(minibatches=4),
        "24 rows of 12 tokens, no whole number of groups of 4 in each of 4 minibatches",
    ),
    (dict(loss="ipoo"), "method.loss='ipoo'"),
    (dict(loss="ipo", label_smoothing=0.1), "the loss ipo has none"),
    (dict(rewards=()), "method.rewards is empty"),
    (dict(group=1), "method.group=1"),
]


@pytest.mark.parametrize(("given", "reason"), WRONG)
def test_what_cannot_be_learned_is_refused_in_a_line(given: dict[str, Any], reason: str, file: Path) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        summing(file).replace(method=method(**given), **({"batch_tokens": 24 * 12} if "minibatches" in given else {}))
    assert "\n" not in str(raised.value)


def test_a_smoke_test_of_it_has_whole_pairs(file: Path) -> None:
    small = smoke(summing(file).replace(method=method(group=8, minibatches=2))).on(1)
    assert small.rows % small.method.objective.row_copies == 0 and small.method.group == 2


@pytest.mark.slow
def test_it_learns_from_rewards_and_goes_on_with_the_same_bits(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = summing(file).replace(method=method(rewards=(Digits(),), group=2, epochs=2, minibatches=2), steps=12)
    course.train(e, tmp_path / "whole")
    assert stopped_and_resumed(lambda: e, tmp_path / "run", monkeypatch) == lines(tmp_path / "whole")
    reward = of(lines(tmp_path / "whole"), "reward")
    assert np.mean([reward[n] for n in (10, 11, 12)]) > np.mean([reward[n] for n in (1, 2, 3)]) + 0.03


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_three_updates_on_eight_devices_are_those_of_one(data: Batches, shape: dict[str, int]) -> None:
    learner = learner_of(data)
    (one, first), (many, second) = (stepped(learner, data, 3, mesh) for mesh in (None, make_mesh(shape)))
    assert first == {name: pytest.approx(x, rel=1e-3, abs=1e-4) for name, x in second.items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one.params, jax.device_get(many.params))
    assert ROWS == 8
