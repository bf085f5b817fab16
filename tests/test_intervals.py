import math

import pytest
from numpy import linspace, trapezoid

from academic_pretraining.intervals import half_width


def within(t: float, freedom: int) -> float:
    """Integrate the density of Student's t from -t to t."""
    values = linspace(-t, t, 100_001)
    logarithm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    scale = math.exp(logarithm) / math.sqrt(freedom * math.pi)
    return float(scale * trapezoid((1 + values**2 / freedom) ** (-(freedom + 1) / 2), values))


@pytest.mark.parametrize("freedom", [*range(1, 41), 100, 1000])
def test_an_interval_holds_95_of_100_means(freedom):
    assert within(half_width(1.0, freedom), freedom) == pytest.approx(0.95, abs=1e-4)


def test_an_error_that_is_assumed_is_taken_for_known():
    assert half_width(1.0, 0) == pytest.approx(half_width(1.0, 10**9)) == pytest.approx(1.959964)


def test_it_grows_with_the_error():
    assert half_width(3.0, 5) == 3 * half_width(1.0, 5)
