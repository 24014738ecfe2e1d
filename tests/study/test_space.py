"""What a sweep may choose from: every draw lies in its range, and becomes an experiment."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lm.study import space
from lm.study.space import Choice, Integer, LogUniform, Range, Space, Uniform, With
from lm.train.optim import AdamW, Lion
from tests.tiny import experiment

BASE = experiment(Path("texts"))
SPACE: Space = {
    "optimizer": Choice(
        With(AdamW(), {"optimizer.learning_rate": LogUniform(1e-3, 1e-1), "optimizer.b2": Uniform(0.9, 0.999)}),
        With(Lion(), {"optimizer.learning_rate": LogUniform(1e-4, 1e-2)}),
    ),
    "model.layers": Integer(1, 4),
    "model.dropout": Uniform(0.0, 0.5),
    "method.z_loss": Choice(0.0, 1e-4),
}
bounds = st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)).map(sorted).filter(lambda b: b[0] < b[1])
wholes = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(sorted).filter(lambda b: b[0] < b[1])
RANGES = st.one_of(
    bounds.map(lambda b: Uniform(*b)),
    bounds.map(lambda b: LogUniform(*b)),
    wholes.map(lambda b: Integer(*b)),
    wholes.map(lambda b: Integer(*b, log=True)),
    st.integers(1, 6).map(lambda n: Choice(*range(n))),
)


@given(RANGES, st.floats(0, 1))
def test_a_draw_lies_in_its_range(one: Range, share: float) -> None:
    drawn = one.at(share)
    assert one.holds(drawn) and one.holds(one.at(0.0)) and one.holds(one.at(1.0))
    assert -1e-9 <= one.place(drawn) <= 1 + 1e-9
    assert one.at(1.0) == (one.labels[-1] if one.labels else pytest.approx(one.high))


@given(bounds, st.floats(0, 1))
def test_equal_shares_are_equal_ratios_on_a_logarithmic_range(ends: list[float], share: float) -> None:
    assume(ends[1] > 1.001 * ends[0])  # shares of neighbouring floats cannot be told apart
    one = LogUniform(*ends)
    assert one.place(one.at(share)) == pytest.approx(share, abs=1e-6)
    assert math.isclose(one.at(0.5), math.sqrt(ends[0] * ends[1]), rel_tol=1e-9)


def test_whole_numbers_are_equally_likely() -> None:
    found = [Integer(2, 5).at(share) for share in np.linspace(0, 1, 4001)]
    assert np.bincount(found)[2:].tolist() == pytest.approx([1000] * 4, abs=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_a_draw_is_an_experiment_of_what_is_in_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = space.draw(SPACE, lambda _, one: one.at(rng.random()))
    assert set(drawn) <= set(space.ranges(SPACE)) and ("optimizer.b2 [AdamW]" in drawn) == (
        drawn["optimizer"] == "AdamW"
    )
    chosen = space.settings(SPACE, drawn)
    found = space.changed(BASE, chosen)
    assert type(found.optimizer).__name__ == drawn["optimizer"]
    assert found.optimizer.learning_rate == drawn[f"optimizer.learning_rate [{drawn['optimizer']}]"]
    assert (found.model.layers, found.model.dropout) == (drawn["model.layers"], drawn["model.dropout"])


def test_a_grid_has_every_combination_of_what_is_in_force() -> None:
    lr = "optimizer.learning_rate"
    adamw, lion = {lr: LogUniform(1e-3, 1e-1, points=3)}, {lr: LogUniform(1e-4, 1e-2, points=2)}
    options = Choice(With(AdamW(), adamw), With(Lion(), lion))
    found = space.grid({"optimizer": options, "model.layers": Integer(1, 2)})
    assert len(found) == (3 + 2) * 2 and len({tuple(one.items()) for one in found}) == 10
    assert [one[f"{lr} [AdamW]"] for one in found[:6:2]] == pytest.approx([1e-3, 1e-2, 1e-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 99), st.sampled_from([space.random, space.latin]))
def test_draws_differ_and_are_all_there_where_the_space_is_small(count: int, seed: int, draws: Any) -> None:
    adamw = {"optimizer.b2": Choice(0.9, 0.95)}
    few: Space = {
        "optimizer": Choice(With(AdamW(), adamw), Lion()),
        "model.layers": Integer(1, 5, points=2, log=True),
    }
    assert space.size(few) == 15 and space.size(SPACE) == math.inf
    found = list(draws(few, count, seed).values())
    assert len(found) == len({str(one) for one in found}) == min(count, 15)
    assert all(space.settings(few, one) for one in found)


def test_a_small_space_is_drawn_whole_without_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is next to never drawn too: of 40 whole numbers on a logarithmic scale all are there."""
    monkeypatch.setattr(space, "TRIES", 1)
    found = space.random({"model.width": Integer(1, 40, log=True)}, 40, seed=0)
    assert sorted(one["model.width"] for one in found.values()) == list(range(1, 41))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "expected a range for at least one field"),
        (
            {"optimizer.learning_rat": Uniform(1e-4, 1)},
            "AdamW has no field 'learning_rat': did you mean learning_rate",
        ),
        ({"model.layers": Uniform(1, 4)}, "the field is a whole number; use Integer"),
        (
            {"model.layers": [1, 2]},
            r"expected Uniform, .*Integer or Choice; for these values: Choice\(1, 2\)",
        ),
        ({"seed": Integer(0, 3)}, "the study sets it; seeds= takes the seeds"),
        ({"optimizer": Choice(With(Lion(), {"optimizer.eps": LogUniform(1e-9, 1e-6)}))}, "Lion has no field 'eps'"),
        ({"method.z_loss": Choice(With(0.0, {"method.z_loss": Uniform(0, 1)}))}, "the field is there twice"),
    ],
)
def test_a_space_that_is_none(wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        space.check(BASE, wrong)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Uniform(2, 1), "low below high"),
        (lambda: LogUniform(0, 1), "lies above 0"),
        (lambda: Integer(1.5, 3), "expected whole numbers"),
        (lambda: Choice(), "expected options"),
        (lambda: Choice(1, 1), "the option 1 is there twice"),
        (lambda: space.grid({"method.z_loss": Uniform(0, 1)}), "a grid needs to know how many, as in Uniform"),
    ],
)
def test_a_range_that_is_none(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
