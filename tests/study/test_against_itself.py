"""200 studies of an arm against itself, of real trainings: a difference is found in 5% of them."""

import numpy as np
import pytest

from benchmarks.against_itself import Found, against_itself


@pytest.fixture(scope="module")
def found() -> Found:
    return against_itself(studies=200, seeds=3, steps=5)


def test_one_of_twenty_finds_a_difference(found: Found) -> None:
    low, high = found.expected
    assert (low, high) == (1, 24) and low <= found.found <= high, found.text
    assert 0.35 < np.median(found.p_values) < 0.65  # p is uniform, not only at its end


def test_pairing_narrows_the_interval(found: Found) -> None:
    """Seeds share first values and data: most of what moves a loss at so few steps."""
    assert np.isfinite(found.gains).all() and np.median(found.gains) > 1.5, found.text
