"""Intervals of Student's t against its density and a textbook."""

from __future__ import annotations

import math

import pytest

from training.reports.intervals import mean_interval, t_quantile


def share_below(t: float, degrees: int) -> float:
    """Student's distribution function, by Simpson's rule on its density."""
    scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    steps, width = 2000, t / 2000
    weights = [1 if i in (0, steps) else 4 if i % 2 else 2 for i in range(steps + 1)]
    density = [(1 + (i * width) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(steps + 1)]
    return 0.5 + scale * width / 3 * sum(w * d for w, d in zip(weights, density, strict=True))


@pytest.mark.parametrize("degrees", range(1, 31))
def test_quantiles_are_those_of_students_distribution(degrees):
    assert share_below(t_quantile(degrees), degrees) == pytest.approx(0.975, abs=3e-5)


def test_interval_of_three_values_is_the_textbooks():
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert not found.excludes_zero
    assert mean_interval([2.0]).half is None


def test_between_two_known_degrees_the_wider_interval_is_taken():
    assert t_quantile(7.9) == t_quantile(7)
    assert t_quantile(1000) == 1.98
