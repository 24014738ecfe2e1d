"""Best-of-n: the completion of n with the highest reward (2009.01325; 2112.09332).

What one sampled n times is worth: a baseline for every method that learns from the same reward, and, trained on by SFT,
expert iteration. Its KL divergence from the model that was sampled is at most log n - (n - 1) / n (2401.01879).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from lm.data.prompts import prompt_ids, prompt_text
from lm.tune.assistant import Assistant
from lm.tune.reward_functions import STOP, Completion, Record, RewardFunction, Rewards

Score = Callable[[Sequence[Record], Sequence[Completion]], np.ndarray]  # of completions of records' prompts [n]


class Scorer(Protocol):
    """A reward model, such as a Pretrained (lm/pretrained/model.py)."""

    def score(self, texts: Sequence[str | Sequence[Any] | Mapping[str, Any]]) -> np.ndarray: ...


class Ranked(NamedTuple):
    """A completion and its reward."""

    text: Completion
    reward: float


def by_model(model: Scorer) -> Score:
    """The scores of a reward model, each of the prompt and the completion as training reads them."""
    return lambda records, texts: model.score([answered(*pair) for pair in zip(records, texts, strict=True)])


def by_functions(functions: Sequence[RewardFunction], seconds: float = 60.0) -> Score:
    """The sums of reward functions, each called for at most `seconds`. Raises ValueError where one fails."""
    rewards = Rewards(functions, seconds, STOP)

    def score(records: Sequence[Record], texts: Sequence[Completion]) -> np.ndarray:
        return rewards.total(rewards([prompt_text(record["prompt"]) for record in records], texts, records))

    return score


def answered(record: Record, text: str) -> dict[str, Any]:
    """The record of a conversation (lm/data/conversations.py) that has this answer to the prompt of `record`."""
    prompt = record["prompt"]
    return {"prompt": prompt, "completion": text if isinstance(prompt, str) else [assistant_message(text)]}


def assistant_message(text: str) -> dict[str, str]:
    """`text` as a message of the assistant."""
    return {"role": "assistant", "content": text}


def best_of(
    assistant: Assistant,
    records: Sequence[Record],
    n: int,
    score: Score,
    numbers: Sequence[int] | None = None,
) -> list[list[Ranked]]:
    """The `n` completions of each record's prompt by their rewards, the best first; those without a reward come last.

    Args:
      assistant: draws them; completion i of record number k is the draw k n + i.
      records: with a `prompt`, a text or messages, and what the rewards read.
      n: completions of each prompt.
      score: their rewards, `by_model` or `by_functions`.
      numbers: of the records, where they are some of more; None: from 0.

    Raises ValueError for a prompt that does not fit, and what `score` raises."""
    rows = [ids for record in records for ids in [prompt_ids(record, assistant.tokenizer)] * n]
    draws = [k * n + i for k in (range(len(records)) if numbers is None else numbers) for i in range(n)]
    texts = assistant.write(rows, draws)
    rewards = np.asarray(score([record for record in records for _ in range(n)], texts), float)
    found = [Ranked(text, reward) for text, reward in zip(texts, rewards.tolist(), strict=True)]
    order = np.argsort(-rewards.reshape(-1, n), axis=1, kind="stable")  # NaN comes last
    return [[found[k * n + i] for i in row] for k, row in enumerate(order.tolist())]
