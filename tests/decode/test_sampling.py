"""Sampling against a numpy reference of which tokens may be drawn and how often."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lm.decode import filters
from lm.decode.filters import Counts
from lm.decode.sampling import Sampling, _invert

DRAWS = 6000


def reference(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """The probabilities of one row, from the definitions, filter after filter."""

    def probabilities(keep: np.ndarray) -> np.ndarray:
        p = np.where(keep, np.exp((logits - logits.max()).astype(np.float64) / s.temperature), 0)
        return p / p.sum()

    def fewest(p: np.ndarray, order: np.ndarray, mass: float) -> np.ndarray:
        count = next(n for n in range(1, len(p) + 1) if n == len(p) or p[order[:n]].sum() >= mass - 1e-9)
        return np.isin(np.arange(len(p)), order[:count])

    p = probabilities(np.isin(np.arange(len(logits)), np.argsort(-logits, kind="stable")[: s.top_k or None]))
    p = probabilities(fewest(p, np.argsort(-p, kind="stable"), s.top_p) & (p > 0))
    p = probabilities((p >= s.min_p * p.max() * (1 - 1e-6)) & (p > 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where(p > 0, -np.log(p), np.inf)
        entropy = np.where(p > 0, p * information, 0).sum()
    return probabilities(fewest(p, np.argsort(np.abs(information - entropy), kind="stable"), s.typical_p) & (p > 0))


def counts(logits: np.ndarray, s: Sampling, seed: int = 0) -> np.ndarray:
    """How often each token comes in DRAWS draws."""
    rows = np.broadcast_to(logits.astype(np.float32), (DRAWS, len(logits)))
    return np.bincount(np.asarray(jax.jit(s)(rows, jax.random.key(seed))), minlength=len(logits))


FILTERS = (
    {},
    dict(top_k=4),
    dict(top_p=0.8),
    dict(top_k=4, top_p=0.5),
    dict(top_k=99, top_p=0.3),
    dict(min_p=0.3),
    dict(typical_p=0.5),
    dict(top_k=9, top_p=0.95, min_p=0.05, typical_p=0.9),
)
# a program is traced once, with the FEW of its first call: each case is a value of its own
CASES = [(Sampling(0.7, **f), 2) for f in FILTERS] + [(Sampling(1.6, **f), 64) for f in FILTERS if "top_k" in f]


@pytest.mark.parametrize(("s", "few"), CASES, ids=str)
def test_the_distribution_is_the_reference(s: Sampling, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searched for the k-th largest, and where it is one of FEW."""
    monkeypatch.setattr(filters, "FEW", few)
    logits = np.random.default_rng(0).standard_normal(12) * 1.5
    want, got = reference(logits, s), counts(logits, s)
    assert (got[want == 0] == 0).all()
    support = want > 0
    expected = want[support] * DRAWS
    chi2 = ((got[support] - expected) ** 2 / expected).sum()
    freedom = support.sum() - 1
    assert chi2 <= freedom + 5 * np.sqrt(2 * freedom) + 1e-9  # about five standard deviations


@pytest.mark.parametrize("vocab", [255, 1000])
def test_blocks_of_a_large_vocabulary_are_drawn_from_alike(vocab: int) -> None:
    """Chi-square over groups of tokens, which a block's border cuts."""
    logits = np.random.default_rng(0).standard_normal(vocab)
    want = reference(logits, Sampling()).reshape(-1, 5).sum(1)
    got = counts(logits, Sampling()).reshape(-1, 5).sum(1)
    chi2 = ((got - want * DRAWS) ** 2 / (want * DRAWS)).sum()
    assert abs(chi2 - len(want) + 1) <= 5 * np.sqrt(2 * (len(want) - 1))


def test_the_ends_of_the_unit_interval_draw_what_has_weight() -> None:
    uniform = np.array([0.0, 0.25, 0.5, 1 - 2.0**-24], np.float32)
    weights = np.tile(np.array([0.0, 1.0, 0.0, 1.0, 0.0], np.float32), (4, 1))
    assert jax.jit(_invert)(weights, uniform).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("s", [Sampling(), Sampling(0.0), Sampling(top_k=9), Sampling(top_p=0.9)])
def test_ids_beyond_the_tokenizer_s_are_never_drawn(s: Sampling) -> None:
    """As from logits that end before them."""
    logits = np.random.default_rng(2).standard_normal(12) + 3 * (np.arange(12) >= 5)
    got = counts(logits, dataclasses.replace(s, vocab_size=5))
    want = reference(logits[:5], s) if s.temperature else np.eye(5)[logits[:5].argmax()]
    assert got[5:].sum() == 0 and np.abs(got[:5] / DRAWS - want).max() < 0.03


def test_biases_are_added_and_forbid() -> None:
    logits = np.random.default_rng(2).standard_normal(6)
    got = counts(logits, Sampling(logit_bias=((1, -math.inf), (3, 2.0))))
    want = reference(logits + np.array([0, -np.inf, 0, 2, 0, 0]), Sampling())
    assert got[1] == 0 and np.abs(got / DRAWS - want).max() < 0.03
    with pytest.raises(ValueError, match="logit_bias for id 6: the vocabulary has 6"):
        counts(logits, Sampling(logit_bias=((6, 1.0),)))


def test_penalties_are_their_formulas() -> None:
    """Of two rows with counts of their own: in the prompt, and among the new tokens."""
    logits = np.array([[2.0, -2.0, 1.0, 0.5], [2.0, -2.0, 1.0, 0.5]], np.float32)
    seen = Counts(np.array([[1, 0, 0, 0], [0, 0, 0, 3]]), np.array([[0, 2, 0, 0], [0, 0, 1, 0]]))  # type: ignore[arg-type]
    s = Sampling(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5, temperature=0.0)
    expected = [[1.0, -4.0 - 0.25 - 1.0, 1.0, 0.5], [2.0, -2.0, 0.5 - 0.25 - 0.5, 0.25]]
    np.testing.assert_allclose(jax.jit(s.process)(logits, seen), expected)


def test_counts_leave_padding_out() -> None:
    tokens, segments = np.array([[2, 0, 2, 1], [1, 0, 0, 0]]), np.array([[1, 1, 1, 1], [1, 0, 0, 0]])
    found = jax.jit(lambda *given: Counts.of(*given, 4).add(jnp.array([3, 1])).add(jnp.array([3, 0])))(tokens, segments)
    assert found.prompt.tolist() == [[1, 1, 2, 0], [0, 1, 0, 0]]
    assert found.new.tolist() == [[0, 0, 0, 2], [1, 1, 0, 0]]


@pytest.mark.parametrize("s", [Sampling(0.0), Sampling(), Sampling(top_k=2), Sampling(top_p=0.9)], ids=str)
def test_logits_that_say_nothing_give_no_token(s: Sampling) -> None:
    """A NaN anywhere in a row, or no finite logit in it; the rows beside it are drawn as ever."""
    nan, inf = np.nan, np.inf
    rows = np.array([[nan] * 4, [0, 1, 50, nan], [-inf] * 4, [0, inf, 0, 0], [-inf, 50, 0, -50]], np.float32)
    assert jax.jit(s)(rows, jax.random.key(0)).tolist() == [-1, -1, -1, -1, 1]


def test_greedy_takes_the_largest_and_needs_no_luck() -> None:
    logits = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    for s in map(jax.jit, (Sampling(0.0), Sampling(0.0, top_k=7, top_p=0.5), Sampling(top_k=1), Sampling(1e-6))):
        for seed in range(3):
            drawn = s(logits, jax.random.key(seed))
            np.testing.assert_array_equal(drawn, np.argmax(logits, -1))
            assert drawn.dtype == jnp.int32


@pytest.mark.parametrize("s", [Sampling(2e-38), Sampling(2e-38, top_k=9), Sampling(2e-38, top_p=0.9)])
def test_no_temperature_is_too_small(s: Sampling) -> None:
    """Though several logits divided by it are infinite."""
    logits = np.array([[5.0, 9.0, 8.0, -3.0, 9.5, 1.0] * 2 + [9.75]], np.float32)
    draw = jax.jit(s)
    assert [int(draw(logits, jax.random.key(seed))[0]) for seed in range(4)] == [12] * 4


@pytest.mark.parametrize("s", [Sampling(0.7), Sampling(top_k=30, top_p=0.95)])
def test_logits_are_drawn_from_in_float32(s: Sampling) -> None:
    logits = np.random.default_rng(3).standard_normal((256, 40)).astype(jnp.bfloat16)
    draw = jax.jit(s)
    np.testing.assert_array_equal(*(draw(x, jax.random.key(0)) for x in (logits, logits.astype(np.float32))))


NUCLEI = {s: jax.jit(s) for s in (Sampling(1.0, 0, 0.1), Sampling(1.0, 0, 0.6), Sampling(1.0, 5, 0.7))}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=8, max_size=8), st.sampled_from(list(NUCLEI)))
def test_the_nucleus_is_the_smallest_set_that_reaches_p(tenths: list[int], s: Sampling) -> None:
    """Ties included: no more tokens are ever drawn than the fewest that reach p."""
    logits = np.asarray(tenths) / 10
    mass = np.sort(np.exp(logits) / np.exp(logits).sum())[::-1][: s.top_k or 8]
    reached = np.cumsum(mass / mass.sum())
    assume(np.abs(reached - s.top_p).min() > 1e-5)  # nearer than that, float32 may see it otherwise
    drawn = np.asarray(NUCLEI[s](np.broadcast_to(logits.astype(np.float32), (256, 8)), jax.random.key(0)))
    fewest = int(np.argmax(reached >= s.top_p)) + 1
    assert len(set(drawn.tolist())) <= fewest
    assert (logits[drawn] >= np.sort(logits)[::-1][fewest - 1]).all()


@pytest.mark.parametrize(
    "s", [Sampling(), Sampling(top_k=5), Sampling(top_p=0.9), Sampling(0.8, 20, 0.7), Sampling(typical_p=0.8)]
)
def test_a_row_does_not_depend_on_its_neighbours(s: Sampling) -> None:
    """Neither when all are that row, nor beside a flat row whose tokens are all equal."""
    rows = np.zeros((4, 30), np.float32)
    rows[:3] = np.random.default_rng(2).standard_normal((3, 30)) * 4
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(7), 4)))
    draw = jax.jit(lambda logits, keys: s(logits, jax.random.wrap_key_data(keys)))
    beside = draw(rows, keys).tolist()
    for i in range(3):
        assert draw(rows[[i] * 4], keys[[i] * 4]).tolist() == beside[i : i + 1] * 4


def test_one_key_for_the_batch_gives_each_row_its_own_and_seeds_reproduce() -> None:
    flat = np.zeros((64, 50), np.float32)
    s = jax.jit(Sampling(top_p=0.99))
    first = s(flat, jax.random.key(3))
    assert len(set(first.tolist())) > 10
    np.testing.assert_array_equal(first, s(flat, jax.random.key(3)))
    np.testing.assert_array_equal(first, s(flat, jax.random.PRNGKey(3)))
    np.testing.assert_array_equal(first[:5], s(flat[:5], jax.random.key(3)))
    assert first.tolist() != s(flat, jax.random.key(4)).tolist()


@pytest.mark.parametrize("s", [Sampling(0.5), Sampling(top_k=3), Sampling(top_p=0.9)])
def test_a_forbidden_token_is_never_drawn(s: Sampling) -> None:
    logits = np.zeros(6)
    logits[[1, 4]] = -np.inf
    assert (counts(logits, s)[[1, 4]] == 0).all()


def test_what_is_left_out_costs_nothing() -> None:
    """No search in the program of plain sampling, no random numbers in the greedy one."""
    program = lambda s: str(jax.make_jaxpr(s)(jnp.zeros((2, 99)), jax.random.key(0)))  # noqa: E731
    assert "top_k" in program(Sampling(top_k=2)) and "scan" in program(Sampling(top_p=0.5))
    assert all(word not in program(Sampling(0.7, top_k=99)) for word in ("while", "scan", "top_k"))
    assert "random" not in program(Sampling(0.0, top_k=3))


A_NUMBER = jax.jit(lambda filter, x, a: filter(x, a), static_argnums=(0, 2))


@pytest.mark.parametrize(
    ("filter", "a", "b"),
    [
        *((filters.top_k, k, 0) for k in (1, 3, 70)),
        (filters.top_p, 0.3, 1.0),
        (filters.min_p, 0.2, 0.0),
        (filters.typical_p, 0.4, 1.0),
    ],
)
def test_the_parameters_may_be_a_number_a_row(filter: Any, a: float, b: float) -> None:
    """As from rows with numbers of their own."""
    logits = np.round(3 * np.random.default_rng(0).standard_normal((2, 200))).astype(np.float32)  # with ties
    both = np.asarray(jax.jit(filter)(logits, np.array([[a], [b]], np.float32 if isinstance(a, float) else np.int32)))
    np.testing.assert_array_equal(both[0], A_NUMBER(filter, logits[:1], a)[0])
    np.testing.assert_array_equal(both[1], logits[1])
    if filter is filters.top_k:  # of equal ones the first
        first = np.argsort(-logits[0], kind="stable")[: int(a)]
        assert np.flatnonzero(np.isfinite(both[0])).tolist() == sorted(first.tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(-0.1), "temperature=-0.1"),
        (lambda: Sampling(float("nan")), "temperature=nan"),
        (lambda: Sampling(top_k=-1), "top_k=-1"),
        (lambda: Sampling(top_p=0.0), "top_p=0.0"),
        (lambda: Sampling(top_p=1.1), "top_p=1.1"),
        (lambda: Sampling(min_p=-0.1), "min_p=-0.1"),
        (lambda: Sampling(typical_p=0.0), "typical_p=0.0"),
        (lambda: Sampling(repetition_penalty=0.0), "repetition_penalty=0.0"),
        (lambda: Sampling(presence_penalty=float("nan")), "presence_penalty=nan"),
        (lambda: Sampling(frequency_penalty=float("inf")), "frequency_penalty=inf"),
        (lambda: Sampling(logit_bias=((-1, 1.0),)), r"logit_bias\[0\]\[0\]=-1: expected at least 0"),
        (lambda: Sampling(logit_bias=((1, float("nan")),)), r"logit_bias\[0\]\[1\]=nan: expected a finite"),
        (lambda: Sampling(vocab_size=-1), "vocab_size=-1"),
        (lambda: Sampling()(jnp.zeros((2, 4)), jax.random.split(jax.random.key(0), 3)), "for 2 rows"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
