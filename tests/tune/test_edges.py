"""What may go wrong with completions and rewards, step after step of one run: parameters and metrics stay finite."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.decode.sampling import Sampling
from lm.model.transformer import Transformer
from lm.sharding.mesh import make_mesh
from lm.train.step import build_step, init_state, run_rollout
from lm.tune.grpo import GRPO
from lm.tune.kl_control import AdaptiveKL
from lm.tune.ppo import PPO
from lm.tune.reward_functions import RewardError, RewardFunction
from tests.train.test_step import ADAMW
from tests.tune.rollouts import COMPUTE, EOS, KEY, NEW, ROWS, batches
from tests.tune.test_ppo import MODEL

NAN, NONE = float("nan"), [None] * ROWS
EMPTY, CUT = (Sampling(logit_bias=((EOS, bias),)) for bias in (1e4, float("-inf")))
FOR_EVER = threading.Event()
# what a completion is, what the reward function does with a batch of them, whether that is a failure
CASES: dict[str, tuple[Sampling, Callable[[], Any], bool]] = {
    "all differ": (Sampling(), lambda: [float(i) for i in range(ROWS)], False),
    "all are empty": (EMPTY, lambda: [float(i) for i in range(ROWS)], False),
    "all are cut": (CUT, lambda: [float(i) for i in range(ROWS)], False),
    "all are equal": (Sampling(), lambda: [1.0] * ROWS, False),
    "some have no reward": (Sampling(), lambda: [None, 1.0, 0.0, None, None, None, None, 3.0], False),
    "none has a reward": (Sampling(), lambda: NONE, False),
    "NaN": (Sampling(), lambda: [NAN, *[1.0] * (ROWS - 1)], True),
    "infinite": (Sampling(), lambda: [float("inf"), *[1.0] * (ROWS - 1)], True),
    "of the wrong shape": (Sampling(), lambda: [[1.0]] * ROWS, True),
    "too few": (Sampling(), lambda: [1.0], True),
    "raises": (Sampling(), lambda: 1 / 0, True),
    "takes for ever": (Sampling(), FOR_EVER.wait, True),
}
NOW = ["all differ"]


@dataclass(frozen=True)
class Scripted(RewardFunction):
    """What the case of the moment gives."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[Any], records: Sequence[Any]) -> Any:
        if NOW[0] == "all are empty":
            assert {(str(text), text.tokens, text.stopped) for text in completions} == {("", 1, True)}
        return CASES[NOW[0]][1]()


def grpo(**given: Any) -> Any:
    return GRPO(group=4, beta=0.1, **given)


def ppo(**given: Any) -> Any:
    return PPO(epochs=1, kl=AdaptiveKL(), normalize=True, whiten_rewards=True, **given)


@pytest.mark.parametrize("make", [pytest.param(grpo, marks=pytest.mark.slow), ppo])
def test_nothing_that_goes_wrong_reaches_the_parameters(make: Callable[..., Any], file: Path) -> None:
    FOR_EVER.clear()
    common = dict(rewards=(Scripted(),), max_new_tokens=NEW)
    data, mesh = batches(file, make(**common)), make_mesh({"data": 1}, jax.devices()[:1])

    def learner_of(sampling: Sampling, **given: Any) -> Any:
        return make(**common, sampling=sampling, **given).build(Transformer(MODEL, COMPUTE), data)

    first = learner_of(Sampling())
    chain = ADAMW.build(len(CASES), first.axes())
    state, step = init_state(first, chain, mesh, 0), build_step(first, chain, mesh)
    for n, (NOW[0], (sampling, _, fails)) in enumerate(CASES.items()):
        seconds = 0.3 if NOW[0] == "takes for ever" else 60.0
        learner = learner_of(sampling, on_reward_error="skip", reward_seconds=seconds)
        where = mesh, state.params, state.frozen, data.batch(n), jax.random.fold_in(KEY, n)
        batch = run_rollout(learner.rollout, *where)
        assert bool(learner.rewards.failed) == fails
        if fails:
            with pytest.raises(RewardError, match="^reward Scripted") as raised:
                run_rollout(learner_of(sampling, reward_seconds=seconds).rollout, *where)
            assert "\n" not in str(raised.value)
        state, metrics = step(state, batch)
        bad = [name for name, x in metrics.items() if not np.isfinite(x)]
        assert not bad, (NOW[0], bad)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.frozen))), NOW[0]
    FOR_EVER.set()
