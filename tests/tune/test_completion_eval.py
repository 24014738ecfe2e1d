"""What completions are like: each number is what it says of the texts that were drawn, beside the start's."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.data.loader import Batches, prepare
from lm.decode.sampling import Sampling
from lm.model.families import scorer
from lm.model.transformer import Transformer
from lm.text.tokenizer import Bytes
from lm.tune.completion_eval import CompletionEval, distinct, wins
from lm.tune.reward_functions import ExactAnswer
from tests.model.reference import lively
from tests.tune.rollouts import COMPUTE, ENDS, KEY, LENGTH, NEW, ROWS, TEXTS, times
from tests.tune.sums import Digits, summing

GIVEN: dict[str, Any] = {"rewards": (Digits(),), "max_new_tokens": NEW, "sampling": ENDS}


def method(**given: Any) -> CompletionEval:
    return CompletionEval(**{**GIVEN, **given})


@pytest.fixture(scope="module")
def data(file: Path) -> Batches:
    return prepare(summing(file).data, LENGTH, ROWS, objective=method().objective, tokenizer=Bytes().make([]))


@pytest.fixture(scope="module")
def begun(data: Batches) -> Any:
    """(params, frozen): the model has left its start."""
    learner = method(scorer_model=scorer(TEXTS)).build(Transformer(TEXTS, COMPUTE), data)
    params, frozen = jax.jit(learner.init)(KEY, lively(TEXTS), {"scorer": lively(scorer(TEXTS))})
    return times(1.2, params), frozen


def judged(begun: Any, data: Batches, **given: Any) -> Any:
    learner = method(**given).build(Transformer(TEXTS, COMPUTE), data)
    params, frozen = begun
    if not learner.models:
        frozen = {name: part for name, part in frozen.items() if name != "scorer"}
    return learner, learner.heldout_rollout(params, frozen, data.batch(0), KEY)


def measured(begun: Any, data: Batches, **given: Any) -> dict[str, float]:
    learner, batch = judged(begun, data, **given)
    sums = {name: float(x) for name, x in learner.evaluate(*begun, batch).items()}
    found: dict[str, float] = learner.measure(sums, data, "sums")
    return found


def test_the_start_is_as_good_as_itself(begun: Any, data: Batches) -> None:
    _, frozen = begun
    start = {name: part for name, part in frozen.items() if name != "scorer"}
    _, batch = judged((start, frozen), data)
    assert not batch["kl"].any()
    _, moved = judged(begun, data)
    assert moved["kl"].any()


def test_the_best_of_n_is_the_best_of_those_that_were_drawn(begun: Any, data: Batches) -> None:
    learner, best = judged(begun, data, best_of=4)
    params, frozen = begun
    drawn = [learner.draw(params, frozen, data.batch(0), jax.random.fold_in(KEY, i)) for i in range(1, 5)]
    totals = np.stack([one.totals for one in drawn])
    np.testing.assert_allclose(best["reward"], totals.max(0), rtol=1e-6)
    for row, first in enumerate(totals.argmax(0)):
        np.testing.assert_array_equal(best["targets"][row], drawn[first].batch["targets"][row])
    ratio = (learner.score(params, best) - learner.score(frozen, best)).sum(1)
    np.testing.assert_allclose(best["kl"], ratio + math.log(4) - 3 / 4, rtol=1e-5, atol=1e-6)


def test_win_rates_are_of_pairs_and_their_interval_is_over_prompts(begun: Any, data: Batches) -> None:
    learner, batch = judged(begun, data)
    params, frozen = begun
    other = learner.draw(frozen, frozen, data.batch(0), jax.random.fold_in(KEY, 0)).batch
    each = wins(batch["Digits"], other["Digits"])
    assert set(each) <= {0, 0.5, 1}
    found = measured(begun, data)
    assert found["Digits_win_rate"] == pytest.approx(each.mean())
    assert found["Digits_win_rate_half_width"] == pytest.approx(1.959964 * each.std() / ROWS**0.5, rel=1e-4)
    assert found["Digits"] == pytest.approx(batch["Digits"].mean())
    assert found["completion_length"] == batch["weights"].sum() / ROWS
    assert found.keys() == {one.name for one in learner.method.measures}


def test_a_tie_is_half() -> None:
    np.testing.assert_array_equal(wins(np.array([2, 1, 1]), np.array([1, 1, 2])), [1, 0.5, 0])


def test_n_grams_that_differ() -> None:
    tokens = np.array([[1, 2, 1, 2, 9], [3, 1, 2, 9, 9]])
    there = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
    assert distinct(tokens, there, 1) == 3 / 7
    assert distinct(tokens, there, 2) == 3 / 5  # 12 21 12, 31 12
    assert distinct(tokens, np.zeros_like(there), 2) == 0


CHANGED: dict[str, Any] = {
    "rewards": (Digits(), ExactAnswer()),
    "max_new_tokens": NEW - 2,
    "sampling": replace(ENDS, temperature=0.5),
    "scorer_model": scorer(TEXTS),
    "best_of": 3,
}


@pytest.mark.parametrize("name", CHANGED)
def test_every_field_changes_what_is_measured(begun: Any, data: Batches, name: str) -> None:
    assert measured(begun, data, **{name: CHANGED[name]}) != measured(begun, data)


def test_what_cannot_be(file: Path) -> None:
    with pytest.raises(ValueError, match="CompletionEval trains nothing: it is for evaluations"):
        replace(summing(file), method=method())
    with pytest.raises(ValueError, match="best_of=2 has no reward to choose by"):
        method(rewards=(Digits(weight=0.0),), best_of=2).check(TEXTS)
    with pytest.raises(ValueError, match="method.sampling is greedy"):
        method(sampling=Sampling(temperature=0.0))
