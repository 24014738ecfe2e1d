"""Differences are those of textbooks, cover what they promise, and admit what cannot be told."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from lm.run.outcome import DIVERGED, FAILED
from lm.study.statistics import (
    Difference,
    differences,
    holm,
    measured,
    paired,
    pairwise,
    power,
    seeds_needed,
    student,
    unpaired,
)
from lm.study.trial import MISSING, STOPPED
from lm.study.verdicts import direction, verdict, word
from tests.study.results import run, runs

losses = st.floats(0.5, 20.0)
samples = st.lists(st.tuples(losses, losses), min_size=2, max_size=8)
A = {0: 2.0, 1: 2.3, 2: 2.1, 3: 2.6}
B = {0: 1.9, 1: 2.25, 2: 1.95, 3: 2.52}
STUDENT = {
    1: 12.706204736,
    2: 4.30265273,
    3: 3.182446305,
    4: 2.776445105,
    5: 2.570581836,
    6: 2.446911851,
    7: 2.364624252,
}


def test_student_s_interval_by_hand() -> None:
    # differences -0.1, -0.05, -0.15, -0.08: mean -0.095, s^2 = 0.0053 / 3
    (found,) = differences(runs({"base": A, "arm": B}), "base", "loss")
    half = 3.182446305 * math.sqrt(0.0053 / 3) / 2
    assert (found.seeds, found.difference) == (4, pytest.approx(-0.095))
    assert (found.low, found.high) == pytest.approx((-0.095 - half, -0.095 + half))
    assert found.mean == pytest.approx(2.155) and found.diverged == 0


@settings(max_examples=60, deadline=None)
@given(samples)
def test_student_s_interval_by_formula(pairs: list[tuple[float, float]]) -> None:
    base, arm = (np.array(side) for side in zip(*pairs, strict=True))
    low, high, p = paired(base, arm)
    d = arm - base
    n, mean = len(d), sum(d) / len(d)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1))
    if deviation < 1e-9:
        return
    half = STUDENT[n - 1] * deviation / math.sqrt(n)
    assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-6, abs=1e-9)
    # p from the density of t itself
    t = abs(mean) / (deviation / math.sqrt(n))
    scale = math.gamma(n / 2) / (math.sqrt((n - 1) * math.pi) * math.gamma((n - 1) / 2))
    inside, _ = integrate.quad(lambda x: scale * (1 + x * x / (n - 1)) ** (-n / 2), 0, min(t, 1e4), limit=400)
    assert p == pytest.approx(1 - 2 * inside, abs=1e-4)
    assert (p < 0.05) == (low > 0 or high < 0) or p == pytest.approx(0.05, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(samples)
def test_welch_s_interval_by_formula(pairs: list[tuple[float, float]]) -> None:
    base, arm = (np.array(side) for side in zip(*pairs, strict=True))
    n = len(base)
    a, b = float(np.var(arm, ddof=1)) / n, float(np.var(base, ddof=1)) / n
    low, high = unpaired(base, arm)
    if min(a, b) < 1e-12:
        assert a or b or (math.isnan(low) and math.isnan(high))
        return
    half = stats.t.ppf(0.975, (a + b) ** 2 / ((a * a + b * b) / (n - 1))) * math.sqrt(a + b)
    middle = arm.mean() - base.mean()
    assert (low, high) == pytest.approx((middle - half, middle + half), rel=1e-6)


def by_hand(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: the k-th least of m is multiplied by m - k + 1; none may be less than one before it."""
    out, most = [0.0] * len(p_values), 0.0
    for k, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        most = max(most, min(1.0, (len(p_values) - k) * p_values[i]))
        out[i] = most
    return out


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8), st.integers(0, 8))
def test_holm_by_hand(p_values: list[float], at: int) -> None:
    assert holm(p_values) == pytest.approx(by_hand(p_values))
    # what is no test is not counted as one
    with_nan = [*p_values[:at], math.nan, *p_values[at:]]
    found = holm(with_nan)
    assert found.pop(min(at, len(p_values))) != 0
    assert found == pytest.approx(by_hand(p_values))


@pytest.mark.parametrize(
    ("p_values", "corrected"),  # by statsmodels 0.15.0: multipletests(p_values, method="holm")[1]
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.2, 0.001, 0.6, 0.02, 0.02], [0.4, 0.005, 0.6, 0.08, 0.08]),
        ([0.9, 0.6], [1.0, 1.0]),
        ([0.049], [0.049]),
    ],
)
def test_holm_as_statsmodels(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == corrected


def test_holm_over_the_arms() -> None:
    found = differences(runs({"base": A, "arm": B, "same": A, "one": {0: 2.0}}), "base", "loss")
    assert [d.p_holm for d in found[:2]] == pytest.approx(by_hand([found[0].p, 1.0])) and math.isnan(found[2].p_holm)


def test_every_pair_of_arms_is_a_test_where_the_data_chose_the_best() -> None:
    arms = measured(runs({"a": A, "b": B, "same": A, "one": {0: 2.0}}), "loss")
    found = pairwise(list(arms.values()))
    alone = [paired(np.array(list(A.values())), np.array(list(B.values())))[2], 1.0]
    # six pairs, the three with the arm of one seed are no tests, and count
    wanted = dict(zip("abcd", by_hand([alone[0], alone[0], 1.0, 1.0, 1.0, 1.0]), strict=False))
    assert found[0, 1] == found[1, 0] == pytest.approx(wanted["a"]) and found[1, 2] == pytest.approx(wanted["b"])
    assert found[0, 2] == 1 and np.isnan(found[3]).all() and np.isnan(np.diag(found)).all()


@settings(max_examples=20, deadline=None)
@given(samples)
def test_a_pair_of_arms_is_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    a, b = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    found = pairwise(list(measured(runs({"a": a, "b": b}), "loss").values()))
    p = paired(np.array(list(a.values())), np.array(list(b.values())))[2]
    assert found[0, 1] == pytest.approx(p, rel=1e-6, abs=1e-12, nan_ok=True)


def test_intervals_of_several_means_are_bonferroni_s() -> None:
    one, of_ten = student([1.0, 2.0, 4.0]), student([1.0, 2.0, 4.0], 10)
    deviation = np.std([1.0, 2.0, 4.0], ddof=1) / 3**0.5
    assert one.half_width == pytest.approx(4.30265273 * deviation)
    assert of_ten.half_width == pytest.approx(14.08904727 * deviation)  # t(0.9975, 2), of Student's table
    assert one.value == of_ten.value == pytest.approx(7 / 3)


@settings(max_examples=30, deadline=None)
@given(samples, st.randoms())
def test_the_order_of_runs_changes_nothing(pairs: list[tuple[float, float]], random: st.DataObject) -> None:
    arms = {name: dict(enumerate(values)) for name, values in zip("ab", zip(*pairs, strict=True), strict=True)}
    results = runs(arms)
    shuffled = results[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = differences(results, "a", "loss"), differences(shuffled, "a", "loss")
    assert all(map(same, astuple(one[0]), astuple(other[0])))


def same(a: object, b: object) -> bool:
    return a == b or (a != a and b != b)


@settings(max_examples=30, deadline=None)
@given(samples)
def test_the_base_as_the_arm_is_the_mirror_image(pairs: list[tuple[float, float]]) -> None:
    a, b = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    (one,) = differences(runs({"a": a, "b": b}), "a", "loss")
    (other,) = differences(runs({"a": a, "b": b}), "b", "loss")
    assert one.difference == pytest.approx(-other.difference, abs=1e-12)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9, nan_ok=True)
    assert one.p == pytest.approx(other.p, nan_ok=True)
    assert one.seeds_needed == pytest.approx(other.seeds_needed, nan_ok=True)
    turned = {"better": "worse", "worse": "better"}
    assert turned.get(word(one, "loss"), word(one, "loss")) == word(other, "loss")


def binomial(count: int, trials: int, share: float) -> bool:
    """Whether `count` is what a share of `trials` gives, but for one time in 10,000."""
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], trials, share)
    return bool(low <= count <= high)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_cover_as_often_as_they_say(seeds: int) -> None:
    rng, true, covered, trials = np.random.default_rng(seeds), 0.03, 0, 600
    for _ in range(trials):
        base = 2 + 0.1 * rng.normal(size=seeds)
        low, high, _ = paired(base, base + true + 0.02 * rng.normal(size=seeds))
        covered += low <= true <= high
    assert binomial(covered, trials, 0.95)


def test_an_arm_against_itself_is_found_out_in_one_study_of_twenty() -> None:
    """And of three such arms, any of them in no more than one of twenty, thanks to Holm."""
    rng, one, alone, trials = np.random.default_rng(0), 0, 0, 200
    for _ in range(trials):
        common = 2 + 0.1 * rng.normal(size=4)
        arms = {name: dict(enumerate(common + 0.02 * rng.normal(size=4))) for name in "abcd"}
        found = differences(
            runs({name: {s: float(v) for s, v in by.items()} for name, by in arms.items()}), "a", "loss"
        )
        alone += found[0].p < 0.05
        one += any(d.p_holm < 0.05 for d in found)
    assert binomial(alone, trials, 0.05)
    assert stats.binom.sf(one - 1, trials, 0.05) > 1e-4


@pytest.mark.parametrize("common", [0.1, 0.02, 0.0])
def test_pairing_narrows_what_seeds_share(common: float) -> None:
    """By sqrt(1 + (common / own)^2), but for degrees of freedom: nothing is gained where they share nothing."""
    rng, own, ratios = np.random.default_rng(1), 0.02, []
    for _ in range(100):
        shared = common * rng.normal(size=10)
        a, b = shared + own * rng.normal(size=10), shared + own * rng.normal(size=10)
        (low, high, _), (unpaired_low, unpaired_high) = paired(a, b), unpaired(a, b)
        ratios.append((unpaired_high - unpaired_low) / (high - low))
    freedom = stats.t.ppf(0.975, 18) / stats.t.ppf(0.975, 9)
    assert np.median(ratios) == pytest.approx(freedom * math.sqrt(1 + (common / own) ** 2), rel=0.15)


# ---------------------------------------------------------------- power


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6)])
def test_how_many_seeds_as_tables_of_power_say(effect: float, seeds: int) -> None:
    """Cohen 1988; the same as G*Power's paired t-test."""
    around = np.array([-1.0, 0.0, 1.0])  # of deviation 1
    assert seeds_needed(np.zeros(3), around + effect) == seeds


@pytest.mark.parametrize(
    (
        "effect",
        "seeds",
        "wanted",
    ),  # by statsmodels 0.15.0: TTestPower().power(effect, seeds, 0.025, alternative="larger")
    [
        (0.2, 10, 0.08196546087147638),
        (0.5, 34, 0.8077766855149761),
        (0.8, 15, 0.8213099770121604),
        (1.2, 2, 0.10708060334437253),
        (3.0, 3, 0.7452680066623012),
        (0.01, 5000, 0.10510412020594928),
        (6.118593437333572, 2, 0.5028028198214823),
    ],
)
def test_power_as_statsmodels(effect: float, seeds: int, wanted: float) -> None:
    assert power(effect, seeds) == pytest.approx(wanted, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(effect=st.floats(0, 3), seeds=st.integers(2, 60))
def test_power_is_an_integral_over_the_deviation(effect: float, seeds: int) -> None:
    """(Z + effect sqrt(n)) / S > t for a normal Z and an independent S^2, chi-squared over its degrees of freedom."""
    critical, freedom = stats.t.ppf(0.975, seeds - 1), seeds - 1
    beyond = lambda c: (  # noqa: E731
        stats.norm.sf(critical * c / math.sqrt(freedom) - effect * math.sqrt(seeds)) * stats.chi.pdf(c, freedom)
    )
    wanted, _ = integrate.quad(beyond, 0, math.sqrt(freedom) + 10, limit=200)
    assert power(effect, seeds) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("seeds", [2, 5, 100])
def test_power_of_no_effect_is_the_tail_s(seeds: int) -> None:
    assert power(0.0, seeds) == pytest.approx(0.025) and power(1e12, seeds) == 1.0


def test_more_seeds_for_less_of_a_difference() -> None:
    needed = [seeds_needed(np.zeros(3), np.array([-1.0, 0.0, 1.0]) + d) for d in np.geomspace(1e-3, 1e5, 120)]
    assert all(a >= b for a, b in itertools.pairwise(needed)) and needed[0] == math.inf and needed[-1] == 2


def test_a_hole_of_the_noncentral_t_is_no_power() -> None:
    """Two seeds see this one every other time, and scipy's other tail is nan there."""
    rng, effect, trials = np.random.default_rng(5), 6.118593437333572, 2000
    seen = [abs(stats.ttest_1samp(effect + rng.normal(size=2), 0).statistic) > 12.7062 for _ in range(trials)]
    assert binomial(sum(seen), trials, 0.503)
    assert seeds_needed(np.zeros(3), np.array([-1.0, 0.0, 1.0]) + effect) == 3


def test_that_many_seeds_see_it_four_times_of_five() -> None:
    rng, found, trials = np.random.default_rng(3), 0, 400
    seeds = int(seeds_needed(np.zeros(3), np.array([-1.0, 0.0, 1.0]) + 1.2))
    for _ in range(trials):
        found += paired(np.zeros(seeds), 1.2 + rng.normal(size=seeds))[2] < 0.05
    assert 0.72 < found / trials < 0.93  # at least 0.8, and a whole number of seeds


# ---------------------------------------------------------------- what cannot be told


def only(base: dict[int, float], arm: dict[int, float]) -> Difference:
    return differences(runs({"base": base, "arm": arm}), "base", "loss")[0]


def test_one_seed_gives_no_interval() -> None:
    found = only({0: 2.0}, {0: 1.5})
    assert (found.seeds, found.difference) == (1, -0.5)
    assert all(map(math.isnan, (found.low, found.high, found.p, found.p_holm, found.seeds_needed, found.unpaired_low)))
    assert word(found, "loss") == "cannot tell"
    assert verdict(found, "loss") == "cannot tell: better by 0.5 at the one seed, which gives no interval"


def test_no_seed_in_common() -> None:
    found = only({0: 2.0}, {1: 1.5})
    assert found.seeds == 0 and math.isnan(found.mean) and math.isnan(found.difference)
    assert verdict(found, "loss") == "cannot tell: at no seed have both it and the base finished"


def test_the_same_at_every_seed() -> None:
    found = only(A, A)
    assert (found.difference, found.low, found.high, found.p, found.seeds_needed) == (0, 0, 0, 1, math.inf)
    assert word(found, "loss") == "same" and verdict(found, "loss") == "the same as the base at each of 4 seeds"


@pytest.mark.parametrize("by", [0.1, 1.0, -0.3])
def test_one_difference_at_every_seed_gives_no_interval(by: float) -> None:
    found = only(A, {seed: loss + by for seed, loss in A.items()})
    assert found.difference == pytest.approx(by) and all(map(math.isnan, (found.low, found.high, found.p)))
    way = "better" if by < 0 else "worse"
    assert verdict(found, "loss").startswith(f"cannot tell: {way} by {abs(by):.3g} at each seed alike")


def test_what_came_to_no_end_is_left_out_and_counted() -> None:
    results = runs({"base": A, "arm": B})
    results[1] = run("base", 1, 3.0, DIVERGED)
    results[4] = run("arm", 0, 3.0, FAILED)
    found = differences(results, "base", "loss")[0]
    assert (found.seeds, found.diverged) == (2, 2)
    assert found.difference == pytest.approx((B[2] - A[2] + B[3] - A[3]) / 2)
    assert verdict(found, "loss").endswith("2 seeds were left out, where it or the base did not come to an end")
    arms = measured(results, "loss")
    assert arms["base"].lost == {1} and arms["arm"].lost == {0} and arms["arm"].mean == pytest.approx(2.24)


@pytest.mark.parametrize("status", [DIVERGED, FAILED, STOPPED])
def test_only_what_finished_counts(status: str) -> None:
    results = runs({"base": A, "arm": B})
    results[-1] = replace(results[-1], status=status)  # with measures
    assert differences(results, "base", "loss")[0].seeds == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_left_out_and_counted(value: float) -> None:
    found = only(A, {**B, 2: value})
    assert (found.seeds, found.diverged) == (3, 1) and math.isfinite(found.low) and math.isfinite(found.mean)


@pytest.mark.parametrize("status", [MISSING, STOPPED])
def test_what_is_under_way_is_awaited(status: str) -> None:
    results = [*runs({"base": A, "arm": B})[:-1], run("arm", 3, 2.0, status)]
    assert (differences(results, "base", "loss")[0].seeds, differences(results, "base", "loss")[0].diverged) == (3, 0)
    assert measured(results, "loss")["arm"].open == {3}


def test_what_holm_takes_back() -> None:
    found = replace(only(A, B), p=0.03, p_holm=0.12)
    assert word(found, "loss") == "cannot tell"
    assert "p = 0.03 would do for one arm alone, but is 0.12 after Holm's correction" in verdict(found, "loss")


def test_how_many_seeds_are_said() -> None:
    few = replace(only(A, B), p=0.2, p_holm=0.2, low=-0.2, high=0.01, seeds_needed=12.0)
    assert verdict(few, "loss").endswith("would need about 12 seeds")
    assert verdict(replace(few, seeds_needed=math.inf), "loss").endswith("would need more than 10,000 seeds")


@pytest.mark.parametrize(
    ("measure", "said"),
    [("loss", "better"), ("code/bits_per_byte", "better"), ("code/accuracy", "worse"), ("x", "lower")],
)
def test_which_way_is_better(measure: str, said: str) -> None:
    found = only(A, {seed: loss - 0.3 + 0.01 * seed for seed, loss in A.items()})
    assert word(found, measure) == said and verdict(found, measure).startswith(f"{said} by 0.285 (95% interval 0.26")
    assert direction("a/next_sentence") == 1 and direction("a/perplexity") == -1


def test_mistakes_are_told() -> None:
    results = runs({"base": A, "arm": B})
    with pytest.raises(ValueError, match="no arm 'bse' to compare with: did you mean base"):
        differences(results, "bse", "loss")
    with pytest.raises(ValueError, match="no run has the measure 'los': did you mean .*loss"):
        differences(results, "base", "los")
    waiting = [run("base", 0, 1.0, MISSING), run("arm", 0, 1.0, MISSING)]
    assert differences(waiting, "base", "los")[0].seeds == 0  # nothing has finished: nothing to check the name with
