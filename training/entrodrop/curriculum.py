"""Curriculum: how strongly tokens drop, by the share of the run that is trained."""

from __future__ import annotations

import math


def curriculum_strength(
    progress: float, *, kind: str = "sigmoid", midpoint: float = 0.5, steepness: float = 10.0
) -> float:
    """Strength in [0, 1]; the drop probability is `gamma = max_rate * strength`.

    Args:
        progress: trained tokens / planned tokens; values outside [0, 1] are clamped.
        kind: sigmoid | linear | cosine | constant. All but constant rise from 0 to 1.
        midpoint: sigmoid only, progress of the steepest rise.
        steepness: sigmoid only, slope of the logistic function.

    Raises:
        ValueError: for an unknown kind.

    The logistic curve is rescaled so that it starts at exactly 0 and ends at exactly 1:
    `(s(p) - s(0)) / (s(1) - s(0))` with `s(p) = 1 / (1 + exp(-steepness * (p - midpoint)))`.
    """
    progress = min(max(progress, 0.0), 1.0)
    if kind == "sigmoid":
        start, end = (_logistic(steepness * (edge - midpoint)) for edge in (0.0, 1.0))
        return (_logistic(steepness * (progress - midpoint)) - start) / (end - start)
    if kind == "linear":
        return progress
    if kind == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * progress))
    if kind == "constant":
        return 1.0
    raise ValueError(f"curriculum kind {kind!r}; valid: sigmoid, linear, cosine, constant")


def _logistic(x: float) -> float:
    # exp of a large positive number overflows, of a large negative one does not
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
