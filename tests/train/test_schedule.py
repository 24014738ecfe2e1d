"""Schedules: their values where the shape turns, and what holds for all of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.train.schedule import SHAPES, WSD, Constant, Cosine, InverseSquareRoot, Linear, Schedule
from lm.value import build, plain

PEAK, STEPS = 2e-3, 100


def rates(schedule: Schedule, steps: int = STEPS) -> np.ndarray:
    """The learning rates of steps 0 to `steps`, the last one step after the run."""
    found = schedule.build(PEAK, steps)(np.arange(steps + 1))
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    return found.astype(np.float64)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        (Constant(10), 1.0, 1.0),
        (Cosine(10), 0.1 + 0.9 / 2, 0.1),
        (Linear(10, final=0.2), 0.6, 0.2),
        (WSD(10, decay_steps=90, shape="linear"), 0.5, 0.0),
        (WSD(10, decay_steps=90, shape="sqrt"), 1 - math.sqrt(0.5), 0.0),
        (WSD(10, decay_steps=90, shape="square"), 0.75, 0.0),
        (WSD(10, decay_steps=90, shape="cosine", final=0.1), 0.55, 0.1),
        (InverseSquareRoot(10), math.sqrt(10 / 55), math.sqrt(10 / 100)),
    ],
)
def test_values_where_the_shape_turns(schedule: Schedule, middle: float, end: float) -> None:
    got = rates(schedule) / PEAK
    np.testing.assert_allclose(got[[0, 4, 10, 55, 100]], [1 / 11, 5 / 11, 1.0, middle, end], rtol=1e-5, atol=1e-6)


def test_wsd_is_stable_until_its_decay() -> None:
    got = rates(WSD(10, decay_fraction=0.25, shape="linear")) / PEAK
    np.testing.assert_allclose(got[10:76], 1.0, rtol=1e-6)
    np.testing.assert_allclose(got[75:], np.linspace(1, 0, 26), atol=1e-6)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Schedule, int]:
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps))
    final = draw(st.floats(0, 1))
    decay = draw(st.integers(0, steps - warmup))
    wsd = WSD(warmup, decay_steps=decay, decay_fraction=0.0, final=final, shape=draw(st.sampled_from(sorted(SHAPES))))
    others = [Constant(warmup), Cosine(warmup, final), Linear(warmup, final), InverseSquareRoot(warmup)]
    return draw(st.sampled_from([wsd, *others])), steps


@settings(max_examples=60, deadline=None)
@given(runs())
def test_every_rate_is_positive_until_the_end_and_never_above_the_peak(run: tuple[Schedule, int]) -> None:
    schedule, steps = run
    got = rates(schedule, steps)
    assert (got[:-1] > 0).all() and got[-1] >= 0
    assert (got <= PEAK * (1 + 1e-6)).all()
    assert got[min(schedule.warmup_steps, steps - 1)] > 0


@settings(max_examples=60, deadline=None)
@given(runs())
def test_up_in_the_warm_up_and_never_up_again(run: tuple[Schedule, int]) -> None:
    schedule, steps = run
    change = np.diff(rates(schedule, steps))
    assert (change[: schedule.warmup_steps] >= -1e-9).all()
    assert (change[schedule.warmup_steps :] <= 1e-9).all()


@pytest.mark.parametrize(
    "schedule",
    [Constant(9), Cosine(9), Linear(9), InverseSquareRoot(9), *(WSD(9, decay_steps=50, shape=x) for x in SHAPES)],
)
def test_jax_and_numpy_give_the_same(schedule: Schedule) -> None:
    """One learning rate for each step of JAX's, an array or a number, traced or not."""
    rate = schedule.build(PEAK, STEPS)
    traced = jax.jit(rate)(jnp.arange(STEPS))
    np.testing.assert_allclose(traced, rate(np.arange(STEPS)), rtol=1e-5, atol=1e-6 * PEAK)
    assert isinstance(rate(7), jax.Array) and math.isclose(float(rate(7)), float(traced[7]), rel_tol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(50, 400), st.sampled_from(["linear", "cosine", "square"]), st.floats(0.2, 1.0))
def test_wsd_has_no_jumps(steps: int, shape: str, fraction: float) -> None:
    """No step changes the rate by more than twice what an even descent would."""
    schedule = WSD(0, decay_fraction=fraction, shape=shape)
    assert np.abs(np.diff(rates(schedule, steps))).max() <= 2.1 * PEAK / schedule.decay_length(steps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(-1), "warmup_steps=-1"),
        (lambda: Cosine(0, final=1.5), "final=1.5"),
        (lambda: WSD(shape="sqroot"), "did you mean sqrt"),
        (lambda: WSD(decay_fraction=2.0), "decay_fraction=2.0"),
        (lambda: Linear(200).build(PEAK, 100), "warmup_steps=200 is longer than the run of 100 steps"),
        (lambda: WSD(60, decay_steps=50).build(PEAK, 100), "do not fit in the run of 100 steps"),
        (lambda: Constant().build(PEAK, 0), "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_to_plain_data_and_back() -> None:
    schedule = WSD(5, decay_steps=7, shape="linear")
    assert build(Schedule, plain(schedule)) == schedule
