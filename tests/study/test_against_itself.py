"""Studies of an arm against itself, of real trainings; `python -m benchmarks.against_itself` does 200 of them, and
test_statistics.py as many of random numbers."""

import numpy as np
import pytest

from benchmarks.against_itself import Found, Swept, against_itself, experiment, losses, sweeps_of_equals


def test_a_few_studies_of_an_arm_against_itself() -> None:
    """Seeds share first values and data, which is most of what moves a loss at so few steps: pairing narrows."""
    reached = losses(experiment(steps=2), studies=24, seeds=3, arms=3)
    assert len(np.unique(reached)) == reached.size  # no two runs draw the same
    found, swept = against_itself(reached), sweeps_of_equals(reached)
    assert swept.sweeps == 24 and swept.holds, swept.text
    assert np.isfinite(found.p_values).all() and len(set(found.p_values)) == 24  # no two arms are the same
    assert found.expected[0] <= found.found <= found.expected[1], found.text
    assert np.isfinite(found.gains).all() and np.median(found.gains) > 1.2, found.text


def test_what_would_be_too_many() -> None:
    found = Found(np.linspace(0, 0.2, 200), np.full(200, 2.0))
    assert found.found == 50 and found.expected == (1, 24)
    assert "50 of 200 studies" in found.text and "by a factor of 2.00" in found.text


@pytest.mark.parametrize(("arms", "seeds", "common"), [(2, 3, 1.0), (8, 3, 1.0), (8, 5, 0.0), (16, 4, 0.0)])
def test_the_choice_of_the_best_is_corrected_for(arms: int, seeds: int, common: float) -> None:
    """At most 5% of sweeps of equal arms tell one from the best, and their best arm's interval covers at least 95%; one
    that the choice is not corrected for does not, where the arms share little of their spread."""
    rng, sweeps = np.random.default_rng(arms * seeds), 250
    reached = 2 + common * rng.normal(size=(sweeps, 1, seeds)) + rng.normal(size=(sweeps, arms, seeds))
    swept = sweeps_of_equals(reached - reached.mean())
    assert swept.holds, swept.text
    if not common:
        assert not Swept(sweeps, *swept.uncorrected, (0, 0)).holds, swept.text


def test_what_a_sweep_says_of_too_many() -> None:
    swept = Swept(200, 12, 30, (40, 50))
    assert not swept.holds and Swept(200, 12, 24, (40, 50)).holds
    assert "12 of 200 sweeps" in swept.text and "40 and 50 without a correction" in swept.text
