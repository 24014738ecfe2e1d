"""Sampling against a numpy reference of which tokens may be drawn and how often."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lm.decode import sampling
from lm.decode.sampling import FirstIds, Sampling

DRAWS = 6000


def reference(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """The probabilities of one row, from the definition."""
    p = np.exp((logits - logits.max()).astype(np.float64) / s.temperature)
    order = np.argsort(-p, kind="stable")
    keep = order[: s.top_k or len(p)]
    p = np.where(np.isin(np.arange(len(p)), keep), p, 0)
    p /= p.sum()
    count = next(n for n in range(1, len(p) + 1) if p[order[:n]].sum() >= s.top_p - 1e-9)
    p = np.where(np.isin(np.arange(len(p)), order[:count]), p, 0)
    return p / p.sum()


def counts(logits: np.ndarray, s: Sampling, seed: int = 0) -> np.ndarray:
    """How often each token comes in DRAWS draws."""
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS, len(logits)))
    return np.bincount(np.asarray(jax.jit(s)(rows, jax.random.key(seed))), minlength=len(logits))


FILTERS = ((0, 1.0), (4, 1.0), (0, 0.8), (4, 0.5), (99, 0.3))
CASES = [Sampling(t, k, p) for t, (k, p) in itertools.product((0.7, 1.6), FILTERS)]


@pytest.mark.parametrize("s", CASES, ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}")
@pytest.mark.parametrize("near", [2, 1024], ids=["sorted", "near"])
def test_the_distribution_is_the_reference(s: Sampling, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "NEAR", near)
    logits = np.random.default_rng(0).standard_normal(12) * 1.5
    want, got = reference(logits, s), counts(logits, s)
    assert (got[want == 0] == 0).all()
    support = want > 0
    expected = want[support] * DRAWS
    chi2 = ((got[support] - expected) ** 2 / expected).sum()
    freedom = support.sum() - 1
    assert chi2 <= freedom + 5 * np.sqrt(2 * freedom) + 1e-9  # about five standard deviations


@pytest.mark.parametrize("s", [*CASES, Sampling(0.0)], ids=str)
def test_of_the_first_ids_alone_as_if_there_were_no_others(s: Sampling) -> None:
    logits = np.random.default_rng(0).standard_normal(12) * 1.5
    logits[5:] += 9
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS, 12))
    got = np.bincount(np.asarray(jax.jit(FirstIds(s, 5))(rows, jax.random.key(0))), minlength=12)
    want = reference(logits[:5], s) if s.temperature else np.eye(5)[logits[:5].argmax()]
    assert got[5:].sum() == 0 and np.abs(got[:5] / DRAWS - want).max() < 0.03


@pytest.mark.parametrize("s", [Sampling(0.0), Sampling(), Sampling(top_k=2), Sampling(top_p=0.9)], ids=str)
def test_logits_that_say_nothing_give_no_token(s: Sampling) -> None:
    """A NaN anywhere in a row, or no finite logit in it; the rows beside it are drawn as ever."""
    nan, inf = jnp.nan, jnp.inf
    rows = jnp.array([[nan] * 4, [0, 1, 50, nan], [-inf] * 4, [0, inf, 0, 0], [-inf, 50, 0, -50]])
    assert jax.jit(s)(rows, jax.random.key(0)).tolist() == [-1, -1, -1, -1, 1]


def test_greedy_takes_the_largest_and_needs_no_luck() -> None:
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((5, 40)), jnp.float32)
    for s in (Sampling(0.0), Sampling(0.0, top_k=7, top_p=0.5), Sampling(top_k=1), Sampling(1e-6)):
        for seed in range(3):
            np.testing.assert_array_equal(jax.jit(s)(logits, jax.random.key(seed)), jnp.argmax(logits, -1))
    assert Sampling(0.0)(logits, jax.random.key(0)).dtype == jnp.int32


@pytest.mark.parametrize("s", [Sampling(2e-38), Sampling(2e-38, top_k=9), Sampling(2e-38, top_p=0.9)])
def test_no_temperature_is_too_small(s: Sampling) -> None:
    """Though several logits divided by it are infinite."""
    logits = jnp.asarray([[5.0, 9.0, 8.0, -3.0, 9.5, 1.0] * 2 + [9.75]], jnp.float32)
    assert [int(s(logits, jax.random.key(seed))[0]) for seed in range(4)] == [12] * 4


@pytest.mark.parametrize("s", [Sampling(0.7), Sampling(top_k=30), Sampling(top_p=0.95)])
def test_logits_are_drawn_from_in_float32(s: Sampling) -> None:
    logits = jnp.asarray(np.random.default_rng(3).standard_normal((256, 40)), jnp.bfloat16)
    draw = jax.jit(s)
    np.testing.assert_array_equal(*(draw(x, jax.random.key(0)) for x in (logits, logits.astype(jnp.float32))))


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


@pytest.mark.parametrize("s", [Sampling(), Sampling(top_k=5), Sampling(top_p=0.9), Sampling(0.8, 20, 0.7)])
@pytest.mark.parametrize("near", [2, 1024])
def test_a_row_does_not_depend_on_its_neighbours(s: Sampling, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when it is alone, nor beside a flat row whose nucleus is large."""
    monkeypatch.setattr(sampling, "NEAR", near)
    peaked = jnp.asarray(np.random.default_rng(2).standard_normal((3, 30)) * 4, jnp.float32)
    keys = jax.random.split(jax.random.key(7), 4)
    draw = jax.jit(s)
    beside = draw(jnp.concatenate([peaked, jnp.zeros((1, 30))]), keys)
    alone = [int(draw(peaked[i : i + 1], keys[i : i + 1])[0]) for i in range(3)]
    assert beside[:3].tolist() == alone


def test_one_key_for_the_batch_gives_each_row_its_own_and_seeds_reproduce() -> None:
    flat = jnp.zeros((64, 50))
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
    """No sort and no top-k in the program of plain sampling, no random numbers in the greedy one."""
    program = lambda s: str(jax.make_jaxpr(s)(jnp.zeros((2, 9)), jax.random.key(0)))  # noqa: E731
    assert "top_k" in program(Sampling(top_k=2)) and "top_k" in program(Sampling(top_p=0.5))
    assert "top_k" not in program(Sampling(0.7, top_k=9)) and "random" not in program(Sampling(0.0, top_k=3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(-0.1), "temperature=-0.1"),
        (lambda: Sampling(float("nan")), "temperature=nan"),
        (lambda: Sampling(top_k=-1), "top_k=-1"),
        (lambda: Sampling(top_p=0.0), "top_p=0.0"),
        (lambda: Sampling(top_p=1.1), "top_p=1.1"),
        (lambda: Sampling()(jnp.zeros((2, 4)), jax.random.split(jax.random.key(0), 3)), "for 2 rows"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
