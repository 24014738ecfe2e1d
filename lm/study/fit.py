"""Fits of the loss L(N, D) = E + A / N^alpha + B / D^beta of N parameters trained on D tokens, and of what follows.

Hoffmann et al. 2022, arXiv:2203.15556: `fit` is their approach 3, `iso_flop` their approach 2. Every interval is of 95%
and comes from a bootstrap with a seed. Sizes and tokens enter by their logarithms, less the mean, or else the
coefficients would hide one another from the optimizer; its sum of Huber losses is not their mean, at whose small values
the published fit stopped too soon (Besiroglu et al. 2024, arXiv:2404.10102).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

from lm.page.words import ALPHA, Estimate

TAIL = round(50 * ALPHA, 9)  # per cent of the draws on each side of an interval
COEFFICIENTS = 5
# of a fit: what is left of the residuals when one is spent on each coefficient must still say something
LEAST_POINTS = 8
EXPONENTS = np.geomspace(0.03, 2.0, 14)  # tried as alpha and beta to begin with
STARTS = 8  # of their pairs, the optimizer begins at these many
LEAST_SPARE = 4  # runs beyond the three of each parabola: with three of them intervals of 95% covered 88%
LEAST_SHARE = 0.1
TINY = 1e-9  # of the widest axis: none is taken for narrower
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta (2203.15556, equation 2), in nats."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """The loss of so many parameters after so many tokens; numbers, or arrays that broadcast."""
        return self.E + self.A / np.asarray(parameters) ** self.alpha + self.B / np.asarray(tokens) ** self.beta

    @property
    def parameters_exponent(self) -> float:
        """a of N_best ~ C^a for C ~ N D; that of the tokens is 1 - a (2203.15556, equation 4)."""
        return self.beta / (self.alpha + self.beta)


@dataclass(frozen=True)
class Fit:
    """The `law` that fits `points` points best, the `laws` of the bootstrap, and the `noise` about them: what the
    logarithms of the losses differed by."""

    law: Law
    laws: tuple[Law, ...]
    noise: tuple[float, ...]
    points: int

    def estimate(self, name: str) -> Estimate:
        """A field or property of the law, with its interval."""
        return _estimate(getattr(self.law, name), [getattr(law, name) for law in self.laws])

    def predict(self, parameters: float, tokens: float) -> Estimate:
        """The loss of a run not seen, and the interval in which it lies: the law's uncertainty and the run's noise."""
        means = np.array([law.loss(parameters, tokens) for law in self.laws])
        return _estimate(float(self.law.loss(parameters, tokens)), np.outer(means, np.exp(self.noise)).ravel())


def _estimate(value: float, draws: Numbers) -> Estimate:
    low, high = np.percentile(draws, [TAIL, 100 - TAIL])
    return Estimate(float(value), float(low), float(high))


# ---------------------------------------------------------------- approach 3


def fit(
    parameters: Numbers, tokens: Numbers, losses: Numbers, bootstrap: int = 200, seed: int = 0, delta: float = 1e-3
) -> Fit:
    """Approach 3 of 2203.15556 (section 3.3): the least sum over runs of Huber_delta(log LSE(a - alpha log N, b - beta
    log D, e) - log L), with A = exp a, B = exp b, E = exp e, by L-BFGS from a grid of starts.

    Args:
      parameters, tokens, losses: N, D and L (nats) of each run.
      bootstrap: draws for the intervals, of residuals, as sizes and tokens were chosen and not drawn; see `_noise`.
      seed: of the draws.
      delta: of Huber's loss, in the logarithm of the loss.

    Raises:
      ValueError: the points do not determine the law.
    """
    N, D, L = (np.asarray(x, float) for x in (parameters, tokens, losses))
    _check_points(N, D, L)
    u, v, y = np.log(N), np.log(D), np.log(L)
    middle = u.mean(), v.mean()
    u, v = u - middle[0], v - middle[1]
    starts = _starts(u, v, y)
    fits = _least(starts, np.tile(y, (len(starts), 1)), u, v, delta, 1e-9)
    best = fits[[np.argmin([_huber(y - _log_loss(x[None], u, v)[0], delta).sum() for x in fits])]]
    best = _least(best, y[None], u, v, delta, 1e-14)
    noise = _noise(best, y, u, v)
    drawn = _log_loss(best, u, v)[0] + np.random.default_rng(seed).choice(noise, (bootstrap, len(y)))
    several = _least(np.repeat(best, bootstrap, 0), drawn, u, v, delta, 1e-9)
    return Fit(_law(best[0], middle), tuple(_law(x, middle) for x in several), tuple(noise.tolist()), len(y))


def _check_points(N: np.ndarray, D: np.ndarray, L: np.ndarray) -> None:
    if not len(N) == len(D) == len(L):
        raise ValueError(f"{len(N)} sizes, {len(D)} numbers of tokens and {len(L)} losses: expected as many of each")
    if len(N) < LEAST_POINTS:
        raise ValueError(
            f"{len(N)} runs to fit L(N, D) with: its {COEFFICIENTS} coefficients need at least {LEAST_POINTS}; "
            "add budgets or shapes"
        )
    for what, values in (("sizes", N), ("numbers of tokens", D)):
        if len(set(values.tolist())) < 3:
            raise ValueError(f"{len(set(values.tolist()))} different {what} to fit L(N, D) with: expected at least 3")
    if not all(np.all(np.isfinite(x) & (x > 0)) for x in (N, D, L)):
        raise ValueError("sizes, tokens and losses to fit L(N, D) with: expected finite numbers above 0")


def _law(x: np.ndarray, middle: tuple[float, float]) -> Law:
    a, alpha, b, beta, e = map(float, x)
    return Law(math.exp(e), math.exp(a + alpha * middle[0]), math.exp(b + beta * middle[1]), alpha, beta)


def _starts(u: np.ndarray, v: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[STARTS, 5] of (a, alpha, b, beta, e): of each pair of exponents the least squares of the relative errors, in
    which A, B and E are linear; those with the least. No term begins at less than a LEAST_SHARE of the least loss: far
    below the others it would have no slope to come back by."""
    inverse, starts = np.exp(-y), []
    floor = LEAST_SHARE * math.exp(y.min())
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            columns = np.stack([np.exp(-alpha * u), np.exp(-beta * v), np.ones_like(u)], 1) * inverse[:, None]
            terms, error = nnls(columns, np.ones_like(y))
            a, b, e = np.log(np.maximum(terms, floor)).tolist()
            starts.append((error, [a, alpha, b, beta, e]))
    return np.array([x for _, x in sorted(starts)[:STARTS]])


def _terms(x: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For coefficients [R, 5] at n points: the logarithm of the loss [R, n], and its gradient [R, 5, n]."""
    a, alpha, b, beta, e = (x[:, i, None] for i in range(COEFFICIENTS))
    logs = np.stack([a - alpha * u, b - beta * v, e + 0 * u])
    top = logs.max(0)
    shares = np.exp(logs - top)
    total = shares.sum(0)
    shares /= total
    gradient = np.stack([shares[0], -shares[0] * u, shares[1], -shares[1] * v, shares[2]], 1)
    return top + np.log(total), gradient


def _log_loss(x: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _terms(x, u, v)[0]


def _huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residuals)
    return np.where(size <= delta, residuals**2 / 2, delta * (size - delta / 2))


def _least(x: np.ndarray, y: np.ndarray, u: np.ndarray, v: np.ndarray, delta: float, tolerance: float) -> np.ndarray:
    """The coefficients [R, 5] that fit the logarithms `y` of losses [R, n] at the sizes `u` and tokens `v` [n] (centred
    logarithms), from the starts `x` [R, 5]; `delta` is Huber's, `tolerance` the optimizer's.

    The R problems are solved as one, as their sum is least where each is: they have the same sizes and tokens, so that
    one memory of L-BFGS serves all. The steps are taken along the axes of the Gauss-Newton matrix at the first start,
    in units of its widths."""
    gradient = _terms(x[:1], u, v)[1][0]
    widths, axes = np.linalg.eigh(gradient @ gradient.T)
    scale = (axes / np.sqrt(np.maximum(widths, TINY * widths.max()))).T * delta

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        fitted, slope = _terms(x + z.reshape(x.shape) @ scale, u, v)
        pull = np.clip(y - fitted, -delta, delta)
        down = -np.einsum("rn,rpn->rp", pull, slope) @ scale.T
        return float(_huber(y - fitted, delta).sum()) / delta**2, down.ravel() / delta**2

    options = dict(maxiter=500, maxfun=1000, maxcor=20, ftol=tolerance, gtol=1e-9)
    with np.errstate(over="ignore", invalid="ignore"):
        solution = minimize(objective, np.zeros(x.size), jac=True, method="L-BFGS-B", options=options)
    return x + solution.x.reshape(x.shape) @ scale


def _noise(best: np.ndarray, y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The residuals to draw from, of both signs.

    Each is divided by sqrt(1 - leverage), what fitting has made it smaller by; and the five nearest to zero are left
    out: absolute errors, which Huber's are beyond delta, are least where the law goes through as many points as it has
    coefficients, and those say nothing of the noise. Without this the intervals cover too seldom."""
    fitted, gradient = (x[0] for x in _terms(best, u, v))
    inverse = np.linalg.pinv(gradient @ gradient.T, hermitian=True)
    leverage = np.clip(np.einsum("pn,pq,qn->n", gradient, inverse, gradient), 0.0, 0.95)
    residuals = y - fitted
    kept = np.argsort(np.abs(residuals), kind="stable")[COEFFICIENTS:]
    widened = (residuals / np.sqrt(1 - leverage))[kept]
    return np.concatenate([widened, -widened])


# ---------------------------------------------------------------- approach 2


@dataclass(frozen=True)
class IsoFlopProfile:
    """The losses of one budget of `flops`: a parabola c2 x^2 + c1 x + c0 in x = log N - `middle`, and where it is
    least. `fault` says why it has no minimum that counts; then the optimum is nan."""

    flops: float
    middle: float
    parabola: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    parameters: float = math.nan
    tokens: float = math.nan
    loss: float = math.nan
    fault: str = ""

    def __call__(self, parameters: Any) -> Any:
        """The parabola's loss at so many parameters."""
        return np.polyval(self.parabola, np.log(parameters) - self.middle)


@dataclass(frozen=True)
class ComputeOptimal:
    """Approach 2 of 2203.15556: N_best = `parameters_at_1` C^a and D_best = `tokens_at_1` C^b with the exponents a and
    b, through the minima of the `profiles` that count."""

    profiles: tuple[IsoFlopProfile, ...]
    parameters_exponent: Estimate
    tokens_exponent: Estimate
    parameters_at_1: float
    tokens_at_1: float


def iso_flop(
    flops: Numbers, parameters: Numbers, tokens: Numbers, losses: Numbers, bootstrap: int = 200, seed: int = 0
) -> ComputeOptimal:
    """Approach 2 of 2203.15556 (section 3.2): a parabola in log N through the runs of each budget, and a power law
    through their minima.

    Tokens follow from the size along a line in the logarithms, budget by budget. A budget whose parabola has no minimum
    among the sizes tried is left out. Where there are fewer than LEAST_SPARE runs beyond three a budget, or one in
    twenty draws has no minimum, the intervals are nan.

    Args:
      flops, parameters, tokens, losses: C, N, D and L of each run.
      bootstrap: draws for the intervals, of residuals of all budgets together.
      seed: of the draws.

    Raises:
      ValueError: fewer than two budgets are left.
    """
    C, N, D, L = (np.asarray(x, float) for x in (flops, parameters, tokens, losses))
    groups = [np.flatnonzero(budget == C) for budget in np.unique(C)]
    profiles = tuple(iso_flop_profile(float(C[g[0]]), N[g], D[g], L[g]) for g in groups)
    good = [(g, one) for g, one in zip(groups, profiles, strict=True) if not one.fault]
    if len(good) < 2:
        faults = "; ".join(f"at {one.flops:.3g} FLOPs {one.fault}" for one in profiles if one.fault)
        message = f"budgets with a best size among those tried: {len(good)}, an exponent needs two"
        raise ValueError(f"{message}{': ' if faults else ''}{faults}")
    x = np.log([one.flops for _, one in good])
    by_size, by_tokens = (
        np.polyfit(x, np.log([getattr(one, name) for _, one in good]), 1) for name in ("parameters", "tokens")
    )
    draws = _draw_exponents(x, [(N[g], D[g], L[g]) for g, _ in good], bootstrap, np.random.default_rng(seed))
    size, of_tokens = (
        _estimate(float(slope), draw) if len(draw) >= 0.95 * bootstrap else Estimate(float(slope))
        for slope, draw in zip((by_size[0], by_tokens[0]), draws, strict=True)
    )
    return ComputeOptimal(profiles, size, of_tokens, math.exp(by_size[1]), math.exp(by_tokens[1]))


def iso_flop_profile(flops: float, parameters: Numbers, tokens: Numbers, losses: Numbers) -> IsoFlopProfile:
    """The parabola through the runs of one budget of `flops`, and where it is least."""
    N, D, L = (np.asarray(x, float) for x in (parameters, tokens, losses))
    u = np.log(N)
    middle, sizes = float(u.mean()), len(set(N.tolist()))
    if sizes < 3:
        return IsoFlopProfile(flops, middle, fault=f"{sizes} sizes make no parabola")
    parabola = np.polyfit(u - middle, L, 2)
    c2, c1, c0 = map(float, parabola)
    at = middle - c1 / (2 * c2) if c2 > 0 else math.nan
    if not u.min() <= at <= u.max():
        beyond = f"the best size lies {'below' if at < u.min() else 'above'} those tried"
        fault = "the loss has no minimum between the sizes" if math.isnan(at) else beyond
        return IsoFlopProfile(flops, middle, (c2, c1, c0), fault=fault)
    best_tokens = math.exp(np.polyval(np.polyfit(u, np.log(D), 1), at))
    best_loss = float(np.polyval(parabola, at - middle))
    return IsoFlopProfile(flops, middle, (c2, c1, c0), math.exp(at), best_tokens, best_loss)


def _draw_exponents(
    x: np.ndarray, groups: Sequence[tuple[np.ndarray, ...]], bootstrap: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The exponents of sizes and of tokens in each draw that has all its minima."""
    fitted, solvers, residuals = [], [], []
    for N, _, L in groups:
        u = np.log(N) - np.log(N).mean()
        powers = np.vander(u, 3)
        solvers.append(np.linalg.pinv(powers))
        fitted.append(powers @ solvers[-1] @ L)
        leverage = np.einsum("nk,kn->n", powers, solvers[-1])
        loose = leverage < 1 - 1e-6  # a parabola through three points leaves nothing
        residuals.append((L - fitted[-1])[loose] / np.sqrt(1 - leverage[loose]))
    if sum(len(N) - 3 for N, *_ in groups) < LEAST_SPARE:
        return np.zeros(0), np.zeros(0)
    pool = np.concatenate([*residuals, *(-r for r in residuals)])
    sizes, tokens = [], []
    for (N, D, _), values, solver in zip(groups, fitted, solvers, strict=True):
        c2, c1, _ = solver @ (values + rng.choice(pool, (bootstrap, len(values)))).T
        at = np.log(N).mean() + np.where(c2 > 0, -c1 / (2 * np.where(c2 > 0, c2, 1)), np.nan)
        sizes.append(at)
        tokens.append(np.polyval(np.polyfit(np.log(N), np.log(D), 1), at))
    whole = np.isfinite(np.array(sizes)).all(0)
    centred = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return centred @ np.array(sizes)[:, whole], centred @ np.array(tokens)[:, whole]
