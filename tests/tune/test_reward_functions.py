"""Reward functions: what each gives, and what becomes of one that fails."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lm import value
from lm.tune.grpo import GRPO
from lm.tune.reward_functions import (
    Completion,
    ExactAnswer,
    Format,
    RewardError,
    RewardFunction,
    Rewards,
    SoftLength,
    names,
)

NAN = float("nan")


@dataclass(frozen=True)
class Given(RewardFunction):
    """What a test gives for two completions."""

    values: Any = (1.0, 0.0)

    def __call__(self, prompts: Any, completions: Any, records: Any) -> Any:
        return self.values() if callable(self.values) else self.values


def called(*functions: RewardFunction, on_error: str = "stop", seconds: float = 5.0) -> tuple[Rewards, np.ndarray]:
    rewards, texts = Rewards(functions, seconds, on_error), [Completion.of(text, 3, True) for text in ("7", "x")]
    return rewards, rewards(["3+4=", "1+1="], texts, [{"answer": 7}, {"answer": 2}])


def test_exact_answers_formats_and_lengths() -> None:
    texts = [Completion.of(t, n, True) for t, n in (("so <a>12</a>, no <a> 7 </a>", 4), ("<a></a>", 6), ("7", 12))]
    records = [{"answer": 7, "other": "12"}] * 3
    assert ExactAnswer(r"<a>(.*?)</a>")([""] * 3, texts, records) == [1, 0, 0]
    assert ExactAnswer()([""] * 3, texts, records) == [0, 0, 1]
    assert ExactAnswer(r"^so <a>(.*?)</a>", field="other")([""] * 3, texts, records) == [1, 0, 0]
    assert Format(r"(?s).*<a>.*</a>")([""] * 3, texts, records) == [1, 1, 0]
    assert SoftLength(4, 8)([""] * 3, texts, records) == [0, -0.5, -1]
    assert ExactAnswer(field="other").columns == ("other",) and Format("x").columns == ()


def test_the_total_is_weighed_and_what_has_nothing_to_say_counts_nowhere() -> None:
    rewards, table = called(ExactAnswer(weight=2.0), Given(values=[None, 0.5]), Given(values=(None, None), weight=9.0))
    np.testing.assert_array_equal(table, [[1, NAN, NAN], [0, 0.5, NAN]])
    np.testing.assert_array_equal(rewards.total(table), [2, 0.5])
    np.testing.assert_array_equal(rewards.total(np.full((1, 3), NAN)), [NAN])
    assert rewards.names == names(rewards.functions) == ("ExactAnswer", "Given1", "Given2")


def raises() -> Any:
    raise KeyError("answer")


FAULTS: list[tuple[Any, str]] = [
    (raises, "raised KeyError: 'answer'"),
    ([1.0], "gave 1 numbers for 2 completions"),
    (3.0, "gave 3.0: expected 2 numbers"),
    (None, "gave None: expected 2 numbers"),
    ([1.0, NAN], "gave nan for 'x'"),
    ([float("inf"), 0.0], "gave inf for '7'"),
    ([[1.0], [2.0]], r"gave \[1.0\] for '7'"),
    (["1", "2"], "gave '1' for '7'"),
    (np.zeros((2, 1)), "gave array"),
]


@pytest.mark.parametrize(("values", "reason"), FAULTS, ids=[reason for _, reason in FAULTS])
def test_a_failure_stops_the_run_or_is_left_out_as_declared(values: Any, reason: str, capsys: Any) -> None:
    with pytest.raises(RewardError, match=f"^reward Given {reason}"):
        called(Given(values=values))
    rewards, table = called(Given(values=values), ExactAnswer(), on_error="skip")
    np.testing.assert_array_equal(table, [[NAN, 1], [NAN, 0]])
    rewards([""] * 2, [Completion.of("", 1, True)] * 2, [{"answer": 1}] * 2)
    assert capsys.readouterr().out.count("the run goes on without it") == 1


def test_one_that_takes_for_ever_is_called_once() -> None:
    done, calls = threading.Event(), list[int]()

    def wait() -> Any:
        calls.append(1)
        done.wait()
        return [1.0, 1.0]

    with pytest.raises(RewardError, match="reward Given: no answer within reward_seconds=0.05"):
        called(Given(values=wait), seconds=0.05)
    rewards, table = called(Given(values=wait), on_error="skip", seconds=0.05)
    texts = [Completion.of("", 1, True)] * 2
    assert np.isnan(table).all() and np.isnan(rewards([""] * 2, texts, [{}] * 2)).all() and len(calls) == 2
    assert "still not ended" in rewards.failed["Given"]
    done.set()
    rewards._late[0].join()
    assert rewards([""] * 2, texts, [{}] * 2).tolist() == [[1], [1]]


def test_they_are_values_of_an_experiment() -> None:
    method = GRPO(rewards=(ExactAnswer("=(.*)", weight=2.0), Format("x+"), SoftLength(3, 9)))
    assert value.build(GRPO, value.plain(method)) == method
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: ExactAnswer("no group"), "expected one group"),
        (lambda: Format("("), "no regular expression"),
        (lambda: SoftLength(5, 5), "expected more than free=5"),
        (lambda: GRPO(rewards=()), "method.rewards is empty: give a reward function, or a reward model"),
        (lambda: GRPO(rewards=(Format("x"),), scale="std"), "method.scale='std': known: group, batch, none"),
        (lambda: GRPO(rewards=(Format("x"),), group=1), "method.group=1"),
    ]
    for make, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            make()
