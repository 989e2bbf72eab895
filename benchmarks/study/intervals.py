"""Means with 95% intervals of Student's t, for the few seeds that a study has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom
_T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)


@dataclass(frozen=True)
class Interval:
    """A mean, and how far the interval reaches to either side."""

    mean: float
    half: float | None
    """None for a single value, which tells nothing of its spread."""
    count: int

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half


def t_quantile(degrees: int) -> float:
    """Of 97.5%; above 30 degrees that of 30, which is a little wider than need be."""
    if degrees < 1:
        raise ValueError("an interval needs two values")
    return _T_975[min(degrees, len(_T_975)) - 1]


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its 95% interval."""
    half = None
    if len(values) > 1:
        half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values), half, len(values))
