"""Best-of-n: the completion of n with the highest reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lm.tune.best_of import answered, best_of, by_functions, by_model
from lm.tune.reward_functions import Completion, RewardError, RewardFunction
from tests.tune.answering import assistant, model
from tests.tune.sums import Failing
from tests.tune.test_assistant import ENDS

RECORDS: list[dict[str, Any]] = [
    {"prompt": "ab", "wants": 1},
    {"prompt": [{"role": "user", "content": "cd"}], "wants": 9},
]


@dataclass(frozen=True)
class Near(RewardFunction):
    """How near a completion's length is to what its record wants; nothing of those of 2 tokens."""

    def __call__(self, prompts: Sequence[str], texts: Sequence[Completion], records: Any) -> list[float | None]:
        assert all(prompt in ("ab", "cd") for prompt in prompts)
        found = zip(texts, records, strict=True)
        return [None if text.tokens == 2 else -abs(text.tokens - record["wants"]) for text, record in found]


def test_the_best_comes_first_and_what_has_no_reward_last() -> None:
    one = assistant(sampling=ENDS, seed=1)
    found = best_of(one, RECORDS, 6, by_functions([Near()]))
    for record, ranked in zip(RECORDS, found, strict=True):
        rewards = [reward for _, reward in ranked]
        known = [reward for reward in rewards if reward == reward]
        assert known == sorted(known, reverse=True) and rewards[: len(known)] == known
        assert [-abs(text.tokens - record["wants"]) for text, _ in ranked[: len(known)]] == known
        assert all(text.tokens == 2 for text, _ in ranked[len(known) :])
    texts = [text.tokens for ranked in found for text, _ in ranked]
    assert len(texts) == 12 and {2, 6} <= set(texts)
    drawn = one.write([one.tokenizer.encode_prompt("ab")] * 6, range(6))
    assert sorted(drawn) == sorted(text for text, _ in found[0])


def test_parts_of_the_records_have_the_same_draws() -> None:
    one, score = assistant(sampling=ENDS, seed=1), by_functions([Near()])
    part, whole = best_of(one, RECORDS[1:], 6, score, [1]), best_of(one, RECORDS, 6, score)
    assert [text for text, _ in part[0]] == [text for text, _ in whole[1]] != [text for text, _ in whole[0]]
    drawn = one.write([one.encode(RECORDS[1]["prompt"])] * 6, range(6, 12))
    assert sorted(drawn) == sorted(text for text, _ in whole[1])


def test_a_reward_model_reads_prompt_and_completion() -> None:
    one, judge = assistant(sampling=ENDS), model(scores=True)
    for record, ranked in zip(RECORDS, best_of(one, RECORDS, 4, by_model(judge)), strict=True):
        scores = judge.score([answered(record, text) for text, _ in ranked])
        np.testing.assert_allclose([reward for _, reward in ranked], scores, rtol=1e-4, atol=1e-5)
        assert (np.diff(scores) <= 1e-5).all() and len(set(scores.tolist())) > 1
    assert answered(RECORDS[0], "x") == {"prompt": "ab", "completion": "x"}
    assert answered(RECORDS[1], "x")["completion"] == [{"role": "assistant", "content": "x"}]


def test_a_reward_that_fails_ends_it() -> None:
    with pytest.raises(RewardError, match="Failing raised"):
        best_of(assistant(), RECORDS[:1], 2, by_functions([Failing()]))
