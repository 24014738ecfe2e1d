"""How the arms of a study differ from its base, and how sure one can be of it.

Runs of one seed share the order of the data and the first values of the parameters, so a good part of what moves a
result from seed to seed moves all arms alike. Differences are therefore formed seed by seed, and tested as pairs
(Student's t). Several arms are several chances to be fooled: their p-values are corrected (Holm). Where the data chose
the arm that the others are compared with, as in a sweep, every pair is a chance. The distributions are scipy's, which
is imported where there are two seeds (half a second); which runs they get, and where there is no result, is ours. The
words are in verdicts.py.
"""

import bisect
import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lm.page.words import ALPHA, LEVEL, Estimate
from lm.run.outcome import DIVERGED, FAILED, PRUNED
from lm.study.trial import Result
from lm.value import suggest

POWER = 0.8
MOST_SEEDS = 10_000  # beyond it, the number of seeds needed is given as infinity
ROUNDING = 32 * float(np.finfo(float).eps)  # differences that vary less, relative to the values, do not vary


@dataclass(frozen=True)
class Measured:
    """One arm by seed: the `values` of those that finished, those that are `lost` (diverged, failed or pruned, or
    without a finite value) and those that are `open` (not run yet, or under way)."""

    arm: str
    values: Mapping[int, float] = field(default_factory=dict)
    lost: frozenset[int] = frozenset()
    open: frozenset[int] = frozenset()

    @property
    def mean(self) -> float:
        """Over the seeds that finished; nan where there are none."""
        return mean(self.values.values())

    @property
    def deviation(self) -> float:
        """The standard deviation over the seeds; nan below two."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else math.nan

    @property
    def estimate(self) -> Estimate:
        """The mean with Student's interval."""
        return student(list(self.values.values()))


@dataclass(frozen=True)
class Difference:
    """How `arm` differs from the base, over the `seeds` at which both finished.

    `mean` is the arm's, `difference` less the base's at the same seeds; `low` and `high` bound its 95% interval, `p` is
    that of the paired t-test, `p_holm` the same after Holm's correction over the arms. `seeds_needed`: to see this
    difference, were it the true one, with power 0.8 at the 5% level (infinity: over 10,000). `diverged` seeds are left
    out, because one of the two did not come to an end. `unpaired_low` and `unpaired_high` are Welch's, of the same
    values taken as two independent samples. What cannot be given is nan."""

    arm: str
    mean: float
    difference: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    seeds: int = 0
    seeds_needed: float = math.nan
    diverged: int = 0
    unpaired_low: float = math.nan
    unpaired_high: float = math.nan

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2

    @property
    def unpaired_half_width(self) -> float:
        """Of the interval that the same runs would give, were they not paired."""
        return (self.unpaired_high - self.unpaired_low) / 2


def measured(results: Iterable[Result], measure: str) -> dict[str, Measured]:
    """The arms, in the order in which they first come. Raises ValueError where runs have finished, and none has
    `measure`."""
    arms: dict[str, list[Result]] = {}
    for result in results:
        arms.setdefault(result.trial.arm, []).append(result)
    known = dict.fromkeys(name for runs in arms.values() for run in runs for name in run.measures)
    if known and measure not in known:
        raise ValueError(f"no run has the measure {measure!r}: {suggest(measure, known)}")
    return {arm: _measured(arm, runs, measure) for arm, runs in arms.items()}


def _measured(arm: str, runs: Iterable[Result], measure: str) -> Measured:
    values, lost, still_open = dict[int, float](), set[int](), set[int]()
    for run in sorted(runs, key=lambda run: run.trial.seed):
        value = float(run.measures.get(measure, math.nan))
        if run.finished and math.isfinite(value):
            values[run.trial.seed] = value
        elif run.finished or run.status in (DIVERGED, FAILED, PRUNED):
            lost.add(run.trial.seed)
        else:
            still_open.add(run.trial.seed)
    return Measured(arm, values, frozenset(lost), frozenset(still_open))


def differences(results: Sequence[Result], base: str, measure: str) -> list[Difference]:
    """How every arm but `base` differs from it in `measure`. Raises ValueError where there is no such arm, or no such
    measure."""
    arms = measured(results, measure)
    if base not in arms:
        raise ValueError(f"no arm {base!r} to compare with: {suggest(base, arms)}")
    compared = [_difference(arms[base], arm) for name, arm in arms.items() if name != base]
    corrected = holm([d.p for d in compared])
    return [dataclasses.replace(d, p_holm=p) for d, p in zip(compared, corrected, strict=True)]


def pairs(base: Measured, arm: Measured) -> list[tuple[int, float, float]]:
    """(seed, the base's value, the arm's) of the seeds at which both finished."""
    return [(seed, base.values[seed], arm.values[seed]) for seed in sorted(base.values.keys() & arm.values.keys())]


def shared(base: Measured, arm: Measured) -> Measured:
    """`arm` with the seeds alone at which the base finished too."""
    return dataclasses.replace(arm, values={seed: value for seed, _, value in pairs(base, arm)})


def _difference(base: Measured, arm: Measured) -> Difference:
    both = pairs(base, arm)
    reference, ours = np.array([b for _, b, _ in both]), np.array([a for _, _, a in both])
    low, high = unpaired(reference, ours)
    return Difference(
        *(arm.arm, mean(ours), mean(ours - reference), *paired(reference, ours)),
        seeds=len(both),
        seeds_needed=seeds_needed(reference, ours),
        diverged=len(base.lost | arm.lost),
        unpaired_low=low,
        unpaired_high=high,
    )


def mean(values: Iterable[float]) -> float:
    """Nan where there are none."""
    listed = list(values)
    return float(np.mean(listed)) if listed else math.nan


# ---------------------------------------------------------------- intervals and tests


def student(values: Sequence[float], among: int = 1) -> Estimate:
    """The mean of `values` and its interval, mean ± t(1 - 0.025 / among, n - 1) s / sqrt(n) (Student 1908).

    The intervals of `among` means hold for all of them at once with 95% (Bonferroni), and therefore for whichever of
    them the same values selected. That of one mean alone does not: the least of 16 equal means lies outside it in 10 to
    20% of the cases."""
    n, middle = len(values), mean(values)
    if n < 2:
        return Estimate(middle, math.nan, math.nan)
    from scipy import stats

    half = float(stats.t.isf(ALPHA / (2 * among), n - 1) * np.std(values, ddof=1) / n**0.5)
    return Estimate(middle, middle - half, middle + half)


def pairwise(arms: Sequence[Measured]) -> np.ndarray:
    """P-values [arms, arms] of the paired t-tests of every two arms, after Holm's correction over all pairs: they hold
    for the pairs with whichever arm the data selected. Nan where there is no test, which counts as one all the same, as
    the arm might have been selected; the diagonal is nan."""
    corrected = np.full((len(arms), len(arms)), math.nan)
    pairs = list(itertools.combinations(range(len(arms)), 2))
    tests = [_paired_p(arms[i], arms[j]) for i, j in pairs]
    for (i, j), p, test in zip(pairs, holm([1.0 if math.isnan(p) else p for p in tests]), tests, strict=True):
        corrected[i, j] = corrected[j, i] = p if math.isfinite(test) else math.nan
    return corrected


def _paired_p(base: Measured, arm: Measured) -> float:
    """The p-value of `paired`, at the seeds at which both finished."""
    both = pairs(base, arm)
    reference, ours = np.array([b for _, b, _ in both]), np.array([a for _, _, a in both])
    return paired(reference, ours)[2]


def paired(base: np.ndarray, arm: np.ndarray) -> tuple[float, float, float]:
    """(low, high, p) of the mean of `arm` - `base`, both [seeds]: d ± t(0.975, n - 1) s / sqrt(n), and the paired
    t-test (Student 1908).

    Nan below two seeds, and where the difference is one and the same at every seed: its variance is
    then unknown. Where that one difference is none at all, the interval is [0, 0] and p is 1."""
    if len(base) < 2:
        return math.nan, math.nan, math.nan
    if _constant(base, arm):
        return (0.0, 0.0, 1.0) if np.array_equal(base, arm) else (math.nan, math.nan, math.nan)
    from scipy import special  # its tests of samples take twenty times as long, and a sweep has thousands of pairs

    n, d = len(base), arm - base
    with _quiet():
        middle, error = np.mean(d), np.std(d, ddof=1) / n**0.5
        half = special.stdtrit(n - 1, 1 - ALPHA / 2) * error
        return float(middle - half), float(middle + half), float(2 * special.stdtr(n - 1, -abs(middle / error)))


def unpaired(base: np.ndarray, arm: np.ndarray) -> tuple[float, float]:
    """(low, high) of the difference of the means of two independent samples, of unequal variances (Welch 1947)."""
    if len(base) < 2 or np.ptp(base) == np.ptp(arm) == 0:
        return math.nan, math.nan
    from scipy import stats

    with _quiet():
        interval = stats.ttest_ind(arm, base, equal_var=False).confidence_interval(LEVEL)
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's correction (Holm 1979): the k-th smallest of m times m - k + 1, at least the corrected
    one before it and at most 1. Those that are nan are no tests, and stay nan."""
    out = np.array(p_values, float)
    tests = np.argsort(out)[: np.isfinite(out).sum()]  # nan is sorted last
    out[tests] = np.minimum(np.maximum.accumulate(out[tests] * np.arange(len(tests), 0, -1)), 1.0)
    return [float(p) for p in out]


def seeds_needed(base: np.ndarray, arm: np.ndarray) -> float:
    """The fewest pairs with which the paired t-test sees, with power 0.8, a true difference as large as the observed
    one relative to its spread: infinity beyond 10,000; nan where the spread is not known."""
    if len(base) < 2:
        return math.nan
    if _constant(base, arm):
        return math.inf if np.array_equal(base, arm) else math.nan
    with _quiet():
        effect = abs(float(np.mean(arm - base) / np.std(arm - base, ddof=1)))
    enough = bisect.bisect_left(range(2, MOST_SEEDS + 1), POWER, key=lambda seeds: power(effect, seeds)) + 2
    return float(enough) if enough <= MOST_SEEDS else math.inf


def power(effect: float, seeds: int) -> float:
    """Of the two-sided paired t-test of so many pairs, for a true mean of `effect` standard deviations: the chance that
    the noncentral t lies beyond the critical value (Cohen 1988).

    Only the tail on the effect's side counts: the other is next to nothing where it matters, and nan in scipy for many
    effects. This one is nan only for effects so large that it is 1."""
    from scipy import stats

    critical = stats.t.isf(ALPHA / 2, seeds - 1)
    tail = float(stats.nct.sf(critical, seeds - 1, effect * math.sqrt(seeds)))
    return 1.0 if math.isnan(tail) else tail


def load() -> None:
    """Import scipy ahead of the first test, by a process that waits for something else."""
    import scipy.stats  # noqa: F401


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of values that are next to the same at all seeds, or that have no square."""
    with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _constant(base: np.ndarray, arm: np.ndarray) -> bool:
    """Whether the differences are the same at all seeds, but for rounding."""
    return bool(np.ptp(arm - base) <= ROUNDING * max(np.abs(base).max(), np.abs(arm).max()))
