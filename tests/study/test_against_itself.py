"""Studies of an arm against itself, of real trainings; `python -m benchmarks.against_itself` does 200 of them, and
test_statistics.py as many of random numbers."""

import numpy as np

from benchmarks.against_itself import Found, against_itself


def test_a_few_studies_of_an_arm_against_itself() -> None:
    """Seeds share first values and data, which is most of what moves a loss at so few steps: pairing narrows."""
    found = against_itself(studies=24, seeds=3, steps=2)
    assert np.isfinite(found.p_values).all() and len(set(found.p_values)) == 24  # no two arms are the same
    assert found.expected[0] <= found.found <= found.expected[1], found.text
    assert np.isfinite(found.gains).all() and np.median(found.gains) > 1.2, found.text


def test_what_would_be_too_many() -> None:
    found = Found(np.linspace(0, 0.2, 200), np.full(200, 2.0))
    assert found.found == 50 and found.expected == (1, 24)
    assert "50 of 200 studies" in found.text and "by a factor of 2.00" in found.text
