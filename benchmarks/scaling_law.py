"""Do the fits of scaling laws find known coefficients again, as often as their 95% intervals promise?

    python -m benchmarks.scaling_law --draws 100 --keep

Losses are drawn from a known law L(N, D), with noise, at the sizes and budgets of a ladder; each draw is fitted anew.
"""

import argparse
import math
import time

import numpy as np
from scipy import stats

from benchmarks import report
from lm.study import fit
from lm.study.fit import Law

TRUE = Law(1.69, 406.4, 410.7, 0.34, 0.28)  # 2203.15556, equation 10
NOISE = 3e-3  # of the logarithm of a loss
UNSEEN = (1e9, 1e11)  # N and D of a run to predict, beyond those fitted
COEFFICIENTS = ("E", "A", "B", "alpha", "beta", "parameters_exponent")


def ladder(budgets: int, sizes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(FLOPs, N, D) of runs around the best size of each budget."""
    flops = np.repeat(np.geomspace(1e15, 1e17, budgets), sizes)
    best = (TRUE.alpha * TRUE.A / (TRUE.beta * TRUE.B)) ** (1 / (TRUE.alpha + TRUE.beta))
    best *= (flops / 6) ** TRUE.parameters_exponent
    parameters = best * np.tile(np.geomspace(0.3, 3.3, sizes), budgets)
    return flops, parameters, flops / 6 / parameters


def inside(draw: int, options: argparse.Namespace) -> dict[str, bool]:
    """Which of the true values lie in the intervals of one draw."""
    rng = np.random.default_rng(draw)
    flops, sizes, tokens = ladder(options.budgets, options.sizes)
    losses = TRUE.loss(sizes, tokens) * np.exp(rng.normal(0, NOISE, len(sizes)))
    law = fit.fit(sizes, tokens, losses, options.bootstrap, draw)
    found = {name: getattr(TRUE, name) in law.estimate(name) for name in COEFFICIENTS}
    unseen = float(TRUE.loss(*UNSEEN)) * math.exp(rng.normal(0, NOISE))
    optimum = fit.iso_flop(flops, sizes, tokens, losses, options.bootstrap, draw)
    return found | {
        "the loss of a run not seen": unseen in law.predict(*UNSEEN),
        "exponent by approach 2": TRUE.parameters_exponent in optimum.parameters_exponent,
    }


def main() -> None:
    """Draw, fit, print how often each interval covers, and with --keep write it to RESULTS.md."""
    options = _options()
    found = [inside(draw, options) for draw in range(options.draws)]
    low, high = (int(stats.binom.ppf(q, options.draws, 0.95)) for q in (0.025, 0.975))
    columns = ["of", "true value", "intervals that cover it"]
    shown = {name: f"{getattr(TRUE, name):.4g}" for name in COEFFICIENTS}
    rows = [[name, shown.get(name, ""), f"{sum(one[name] for one in found)} of {options.draws}"] for name in found[0]]
    title = f"95% intervals of scaling laws: {options.budgets} budgets of {options.sizes} sizes, noise {NOISE:.1%}"
    expected = f"Intervals that cover as promised do so {low} to {high} times of {options.draws} (95% of the time)."
    notes = [f"{time.strftime('%Y-%m-%d')}. {expected} Bootstraps of {options.bootstrap}."]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep("scaling law", report.markdown(title, columns, rows, notes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling_law", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--budgets", type=int, default=4)
    parser.add_argument("--sizes", type=int, default=6)
    parser.add_argument("--bootstrap", type=int, default=200)
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
