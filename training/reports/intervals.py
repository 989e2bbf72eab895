"""Means with 95% intervals of Student's t, for few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

# 97.5% quantiles by degrees of freedom; between two, that of the fewer is taken.
_T_QUANTILES = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110,
    18: 2.101, 19: 2.093, 20: 2.086, 21: 2.080, 22: 2.074, 23: 2.069, 24: 2.064, 25: 2.060,
    26: 2.056, 27: 2.052, 28: 2.048, 29: 2.045, 30: 2.042, 40: 2.021, 60: 2.000, 120: 1.980,
}  # fmt: skip


class Interval(NamedTuple):
    """A mean, and how far the interval reaches to either side."""

    mean: float
    half: float | None
    """None for a single value, which says nothing about its spread."""

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its 95% interval."""
    if len(values) < 2:
        return Interval(fmean(values), None)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values), half)


def t_quantile(degrees_of_freedom: float) -> float:
    """The 97.5% quantile of Student's t, never too small."""
    return _T_QUANTILES[max(known for known in _T_QUANTILES if known <= degrees_of_freedom)]
