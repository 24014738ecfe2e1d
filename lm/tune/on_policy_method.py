"""What methods declare that learn from a model's own completions: rewards, how completions are drawn, and bounds.

Each is a subclass with its loss (lm/tune/grpo.py, ppo.py, online_dpo.py); the learner is in lm/tune/on_policy.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from lm.bounds import Count, Positive, check
from lm.data.prompts import Rollouts
from lm.decode.sampling import Sampling
from lm.model.config import ModelConfig
from lm.page.measure import Measure
from lm.train.method import Method, SavedModel
from lm.tune.reward_functions import SKIP, STOP, RewardFunction, names
from lm.value import suggest

PER_TOKEN = ("sampler_logprobs", "policy_logprobs", "old_logprobs")
PER_ROW = ("reward", "completion_length", "truncated", "sampler_gap")
SMALL = 32  # new tokens in a smoke test


@dataclass(frozen=True)
class OnPolicyMethod(Method):
    """A method that learns from what its model's own completions are worth. The base class of all.

    - `rewards`: functions (lm/tune/reward_functions.py) of which the weighted sum is a completion's reward. `scorer`: a
      reward model, as a run's folder or a Hugging Face directory, whose score of the completion's last token is added
      to it; `scorer_model` is its config, None: there is none.
    - Completions have up to `max_new_tokens`, drawn by `sampling`; log-probabilities are at its temperature.
    - `minibatches` of a batch, an update each, `epochs` times.
    - `max_sampler_gap`: nats between a token's log-probabilities in sampling and training, beyond which a run stops.
    - `reward_seconds`: of a reward function's call; where it fails, the run stops, or goes on without its reward
      (`on_reward_error`: stop, skip)."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"on_reward_error": (STOP, SKIP)}

    rewards: tuple[RewardFunction, ...] = ()
    scorer: str | None = None
    scorer_model: ModelConfig | None = None
    max_new_tokens: Count = 256
    sampling: Sampling = Sampling()
    minibatches: Count = 1
    epochs: Count = 1
    max_sampler_gap: Positive = 1.0
    reward_seconds: Positive = 60.0
    on_reward_error: str = STOP

    def __post_init__(self) -> None:
        check(self, "method")
        for name, known in self.choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"method.{name}={getattr(self, name)!r}: {suggest(getattr(self, name), known)}")
        if not self.sources:
            raise ValueError("method.rewards is empty: give a reward function, or a reward model (method.scorer_model)")
        if self.scorer and not self.scorer_model:
            raise ValueError(f"method.scorer={self.scorer!r} needs its config: set method.scorer_model")
        if self.sampling.greedy:
            raise ValueError("method.sampling is greedy: all completions of a prompt would be equal")

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of what gives rewards."""
        return (*names(self.rewards), *self.models)

    @property
    def reads_reference(self) -> bool:
        """Whether the model of the start is kept, as a reference."""
        return True

    def rollouts(self, copies: int, per_token: Sequence[str] = (), per_row: Sequence[str] = ()) -> Rollouts:
        """The objective: `copies` completions of a prompt, in batches with these arrays beside those of all."""
        arrays = (*PER_TOKEN, *per_token), (*PER_ROW, *self.sources, *per_row)
        return Rollouts(copies, self.max_new_tokens, *arrays)

    @property
    def measures(self) -> tuple[Measure, ...]:
        own = self.sources if len(self.sources) > 1 else ()
        rewards = (Measure(name, name, "a completion", higher_is_better=True) for name in ("reward", *own))
        return *rewards, Measure("completion_length", "completion length", "tokens")

    @property
    def updates(self) -> tuple[int, int]:
        return self.minibatches, self.epochs

    @property
    def models(self) -> Mapping[str, SavedModel]:
        return {"scorer": SavedModel(self.scorer, self.scorer_model)} if self.scorer_model else {}

    def smaller(self, shrink: Callable[[ModelConfig], ModelConfig]) -> Self:
        scorer = self.scorer_model and shrink(self.scorer_model)
        most = min(self.max_new_tokens, SMALL)
        return replace(self, scorer=None, scorer_model=scorer, max_new_tokens=most, minibatches=1, epochs=1)

    def check(self, model: ModelConfig) -> None:
        self.objective.check(model)
        scorer = self.scorer_model
        if scorer and scorer.output.scores != 1:
            raise ValueError(
                f"method.scorer_model.output.scores={scorer.output.scores}: a reward model has one, set it to 1"
            )
        if scorer and scorer.vocab != model.vocab:
            raise ValueError(
                f"model.vocab is {model.vocab} and method.scorer_model.vocab {scorer.vocab}: expected the same"
            )
