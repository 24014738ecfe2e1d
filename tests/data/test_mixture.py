import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.mixture import CHUNK_STEPS, Breakpoint, Data, Mixture, MixtureSampler
from lm.data.source import TextFile
from lm.value import build, parse, plain

SOURCES = {name: TextFile(name) for name in "abc"}
WEIGHTS = {"a": 5.0, "b": 3.0, "c": 2.0}
SHARES = np.array([0.5, 0.3, 0.2])


@settings(max_examples=60, deadline=None)
@given(
    weights=st.tuples(*[st.floats(0, 10)] * 3).filter(lambda w: sum(w) > 0.1),
    rows=st.integers(1, 40),
    seed=st.integers(0, 5),
    step=st.integers(0, 3 * CHUNK_STEPS),
)
def test_counts_fill_the_batch_and_are_off_by_less_than_one(weights, rows, seed, step) -> None:
    mixture = Mixture(SOURCES, dict(zip("abc", weights, strict=True)))
    counts = MixtureSampler(mixture, rows, seed).counts(step)
    exact = rows * np.array(weights) / sum(weights)
    assert counts.sum() == rows and (counts >= 0).all()
    assert (np.abs(counts - exact) < 1 + 1e-9).all()


def test_counts_have_the_weights_as_their_mean() -> None:
    sampler = MixtureSampler(Mixture(SOURCES, WEIGHTS), 7, seed=1)
    steps = 4 * CHUNK_STEPS
    mean = sampler.counts_before(steps) / (7 * steps)
    assert np.abs(mean - SHARES).max() < 4 * 0.5 / 7 / steps**0.5


def test_weights_follow_the_breakpoints() -> None:
    mixture = Mixture(
        SOURCES, WEIGHTS, (Breakpoint(100, {"a": 0, "b": 1, "c": 1}), Breakpoint(200, {"a": 1, "b": 0, "c": 0}))
    )
    shares = mixture.shares(np.array([0, 50, 100, 150, 200, 10**6]))
    np.testing.assert_allclose(shares[0], SHARES)
    np.testing.assert_allclose(shares[1], np.array([2.5, 2, 1.5]) / 6)
    np.testing.assert_allclose(shares[2:], [[0, 0.5, 0.5], [1 / 3] * 3, [1, 0, 0], [1, 0, 0]])
    sampler = MixtureSampler(mixture, 8, seed=0)
    assert sampler.counts(100)[0] == 0 and sampler.counts(5000).tolist() == [8, 0, 0]
    taken = sampler.counts_before(200) - sampler.counts_before(0)
    np.testing.assert_allclose(taken / 1600, mixture.shares(np.arange(200)).mean(axis=0), atol=0.03)


@pytest.mark.parametrize("start", [0, 5, CHUNK_STEPS - 2, 3 * CHUNK_STEPS + 1])
def test_each_row_of_a_source_is_given_once_and_in_order(start: int) -> None:
    sampler = MixtureSampler(Mixture(SOURCES, WEIGHTS), 6, seed=3)
    expected = sampler.counts_before(start).tolist()
    for step in range(start, start + 6):
        source, number = sampler.rows(step)
        for s in range(3):
            given_now = sorted(number[source == s].tolist())
            assert given_now == list(range(expected[s], expected[s] + len(given_now)))
            expected[s] += len(given_now)


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees() -> None:
    mixture = Mixture(SOURCES, WEIGHTS, (Breakpoint(3000, {"a": 1, "b": 0, "c": 7}),))
    straight = MixtureSampler(mixture, 10, seed=9)
    for step in [*range(CHUNK_STEPS - 3, CHUNK_STEPS + 3), 20_000]:
        resumed = MixtureSampler(mixture, 10, seed=9)
        for a, b in zip(straight.rows(step), resumed.rows(step), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_order_inside_a_batch_is_random() -> None:
    sampler = MixtureSampler(Mixture(SOURCES, WEIGHTS), 64, seed=0)
    orders = [tuple(sampler.rows(step)[0].tolist()) for step in range(4)]
    assert len(set(orders)) == 4 and all(list(o) != sorted(o) for o in orders)


def test_the_seed_draws_the_counts_and_the_order() -> None:
    """Two seeds give a source other steps' rows, and the rows of one source another order."""
    counts = [
        MixtureSampler(Mixture(SOURCES, WEIGHTS), 7, seed).counts_before(s).tolist()
        for seed in (0, 1)
        for s in range(40)
    ]
    assert counts[:40] != counts[40:]
    alone = Mixture({"a": SOURCES["a"]}, {"a": 1.0})  # of which every batch has the same rows, whatever the seed
    orders = [MixtureSampler(alone, 64, seed).rows(5)[1].tolist() for seed in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(5 * 64, 6 * 64)) and orders[0] != orders[1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": -1.0, "b": 1.0, "c": 1.0}, "weights give a -1.0: expected a number, at least 0"),
        ({"a": float("nan"), "b": 1.0, "c": 1.0}, "weights give a nan"),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, "weights are all zero"),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, "weights name 'd', which is no source: .*known: a, b, c"),
        ({"a": 1.0}, "weights have none for b, c"),
    ],
)
def test_impossible_weights_are_refused(weights: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(SOURCES, weights)
    with pytest.raises(ValueError, match=message.replace("weights", "weights at step 9", 1)):
        Mixture(SOURCES, WEIGHTS, (Breakpoint(9, weights),))


def test_impossible_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        Mixture({}, {})
    for steps in ((5, 5), (7, 3), (-1,)):
        with pytest.raises(ValueError, match="breakpoints' steps are"):
            Mixture(SOURCES, WEIGHTS, tuple(Breakpoint(s, WEIGHTS) for s in steps))
    with pytest.raises(ValueError, match="a batch of 0 rows"):
        MixtureSampler(Mixture(SOURCES, WEIGHTS), 0, 0)


def test_data_is_a_plain_value() -> None:
    data = Data(Mixture(SOURCES, WEIGHTS, (Breakpoint(9, WEIGHTS),)))
    assert build(Data, plain(data)) == data
    assert parse(data, "mixture.weights.a=2").mixture.weights["a"] == 2.0
    assert plain(parse(data, "packing=Pack"))["packing"] == {"type": "Pack"}
    assert parse(data, "mixture.sources.a.heldout=0.3").mixture.sources["a"] == TextFile("a", heldout=0.3)
