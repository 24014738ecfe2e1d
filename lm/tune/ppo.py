"""Proximal policy optimization from feedback (PPO, 1707.06347; 1909.08593, 2203.02155).

The model is policy and critic: its output of scores, on the policy's own trunk, is the value of what is written so far.
A completion's score comes at its last token, and each token costs what it is likelier than under the model of the
start. The learner is in lm/tune/actor_critic.py; advantages and losses are pure functions of arrays (lm/tune/gae.py,
lm/tune/policy_gradient.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lm.bounds import Count, Finite, Fraction, NonNegative, Positive, check
from lm.data.prompts import Rollouts
from lm.decode.sampling import Sampling
from lm.model.config import ModelConfig
from lm.model.transformer import Transformer
from lm.page.measure import Measure
from lm.train.method import Method, SavedModel
from lm.tune.actor_critic import KEPT, ActorCritic
from lm.tune.kl_control import FixedKL
from lm.tune.on_policy import PER_ROW, PER_TOKEN
from lm.tune.reward_functions import SKIP, STOP, RewardFunction, names
from lm.value import suggest

if TYPE_CHECKING:
    from lm.data.loader import Batches


@dataclass(frozen=True)
class PPO(Method):
    """Learn from what `rewards` and a `scorer` give to completions of up to `max_new_tokens`, drawn by `sampling`;
    log-probabilities are at its temperature. The model has an output of scores (`model.output.scores=1`), its value
    head, which starts at 0.

    - `scorer`: a reward model, as a run's folder or a Hugging Face directory, whose score of the completion's last
      token is added to the rewards; `scorer_model` is its config, None: there is none.
    - `normalize`: rewards less the mean, over the deviation, of the first batch, which the reference itself has drawn.
    - `missing_stop`: what a completion scores in place of its reward where it was cut (None: its reward).
    - `kl`: FixedKL or AdaptiveKL, off each token's reward. `whiten_rewards`: to the variance 1, with their mean.
    - `discount` and `decay` of advantages (gamma and lambda of 1506.02438), which are whitened.
    - `clip` of the ratio to the policy that has drawn, `clip_value` of values around its; `value_weight` and `entropy`:
      what the critic's loss and the policy's entropy count in the loss.
    - `minibatches` of a batch, an update each, `epochs` times.
    - `truncate_importance`, `max_sampler_gap`, `reward_seconds`, `on_reward_error`: as in GRPO."""

    rewards: tuple[RewardFunction, ...] = ()
    scorer: str | None = None
    scorer_model: ModelConfig | None = None
    max_new_tokens: Count = 256
    sampling: Sampling = Sampling()
    normalize: bool = False
    missing_stop: Finite | None = -1.0
    kl: FixedKL = FixedKL()
    whiten_rewards: bool = False
    discount: Fraction = 1.0
    decay: Fraction = 0.95
    clip: Positive = 0.2
    clip_value: Positive = 0.2
    value_weight: NonNegative = 0.1
    entropy: NonNegative = 0.0
    minibatches: Count = 1
    epochs: Count = 4
    truncate_importance: Positive = 2.0
    max_sampler_gap: Positive = 1.0
    reward_seconds: Positive = 60.0
    on_reward_error: str = STOP

    def __post_init__(self) -> None:
        check(self, "method")
        if self.on_reward_error not in (known := (STOP, SKIP)):
            raise ValueError(f"method.on_reward_error={self.on_reward_error!r}: {suggest(self.on_reward_error, known)}")
        if not self.sources:
            raise ValueError("method.rewards is empty: give a reward function, or a reward model (method.scorer_model)")
        if self.scorer and not self.scorer_model:
            raise ValueError(f"method.scorer={self.scorer!r} needs its config: set method.scorer_model")
        if self.sampling.greedy:
            raise ValueError("method.sampling is greedy, so that nothing would be tried out")

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of what gives rewards."""
        return (*names(self.rewards), *self.models)

    @property
    def objective(self) -> Rollouts:
        per_token = (*PER_TOKEN, "reference_logprobs", "values", "advantages", "returns")
        return Rollouts(1, self.max_new_tokens, per_token, (*PER_ROW, *self.sources, "score", *KEPT))

    @property
    def measures(self) -> tuple[Measure, ...]:
        own = self.sources if len(self.sources) > 1 else ()
        each = (Measure(name, name, "a completion", higher_is_better=True) for name in ("reward", *own))
        return *each, Measure("completion_length", "completion length", "tokens")

    @property
    def updates(self) -> tuple[int, int]:
        return self.minibatches, self.epochs

    @property
    def beta(self) -> float:
        return self.kl.coefficient

    @property
    def models(self) -> Mapping[str, SavedModel]:
        return {"scorer": SavedModel(self.scorer, self.scorer_model)} if self.scorer_model else {}

    def smaller(self, shrink: Callable[[ModelConfig], ModelConfig]) -> "PPO":
        return replace(self, scorer=None, scorer_model=self.scorer_model and shrink(self.scorer_model))

    def check(self, model: ModelConfig) -> None:
        self.objective.check(model)
        for name, one in (("model", model), ("method.scorer_model", self.scorer_model or model)):
            if one.output.scores != 1:
                raise ValueError(f"{name}.output.scores={one.output.scores}: PPO reads one score a token, set it to 1")
            if one.vocab != model.vocab:
                raise ValueError(f"model.vocab is {model.vocab} and {name}.vocab {one.vocab}: expected the same")

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> ActorCritic:
        return ActorCritic(model, data, self, local_rows)
