"""Which group of runs is better and by how much: differences of held-out losses with 95% intervals.

With one seed there is no verdict, and the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from training.reports.curves import RunCurves
from training.reports.groups import RunGroup
from training.reports.intervals import Interval, mean_interval, t_quantile

# Of a group's settings, what decides which tokens its held-out loss is of, beside the set that
# decides what is best. Replay is not among them: it is only trained on.
_OF_THE_LOSS = ("pack", "evaluation.max_samples", "evaluation.sets", "evaluation.weights")
_PARTS_OF_THE_LOSS = ("pack_of_sets.", "evaluation.sets.", "evaluation.weights.")
Measure = Callable[[RunCurves], float | None]


@dataclass(frozen=True)
class Difference:
    """Between a group's mean of a measure and that of another group; below 0 is better."""

    mean: float
    half_width: float | None
    """Of the 95% interval; None with too few seeds for one."""
    basis: str
    """What the interval rests on, as "3 seeds, paired"."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + (self.half_width or 0.0)

    @property
    def verdict(self) -> str:
        """In words: better, worse, no difference seen, or why there is no verdict."""
        if self.half_width is None:
            return f"cannot tell with {self.basis}"
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "no difference seen"


def mean_over_seeds(group: RunGroup, measure: Measure) -> Interval | None:
    """Mean and half of its 95% interval; None when no run has such a number."""
    values = list(_by_seed(group, measure).values())
    return mean_interval(values) if values else None


def compare(group: RunGroup, other: RunGroup, measure: Measure) -> Difference | None:
    """`group` minus `other`, seed by seed where at least two seeds are in both; else by Welch.

    None when one of them has no such number.
    """
    ours, theirs = _by_seed(group, measure), _by_seed(other, measure)
    if not ours or not theirs:
        return None
    shared = [seed for seed in ours if seed is not None and seed in theirs]
    if len(shared) >= 2:
        mean, half_width = mean_interval([ours[seed] - theirs[seed] for seed in shared])
        return Difference(mean, half_width, f"{len(shared)} seeds, paired")
    left, right = list(ours.values()), list(theirs.values())
    mean = fmean(left) - fmean(right)
    if min(len(left), len(right)) < 2:
        if len(shared) == 1:  # the others would add the noise of other seeds
            mean = ours[shared[0]] - theirs[shared[0]]
        return Difference(mean, None, "1 seed")
    basis = f"{len(left)} and {len(right)} seeds, not paired"
    return Difference(mean, _welch_half_width(left, right), basis)


def choose_baseline(groups: list[RunGroup]) -> RunGroup:
    """What the others are compared with: the only group without a regulariser, else the first."""
    plain = [group for group in groups if group.settings.get("regulariser") == "none"]
    return plain[0] if len(plain) == 1 else groups[0]


def are_measured_alike(group: RunGroup, other: RunGroup) -> bool:
    """Whether their held-out losses are of the same samples, as far as the runs show."""
    keys = {
        key
        for found in (group, other)
        for key in found.settings
        if key in _OF_THE_LOSS or key.startswith(_PARTS_OF_THE_LOSS)
    }
    if _decides_best(group) != _decides_best(other):
        return False
    return all(group.settings.get(key) == other.settings.get(key) for key in keys)


def _decides_best(group: RunGroup) -> str | None:
    """`evaluation.best_by`, or the set that is listed first, as the runs had it."""
    evaluation = group.runs[0].recipe.get("evaluation") or {}
    return evaluation.get("best_by") or next(iter(evaluation.get("sets") or {}), None)


def unfinished(*groups: RunGroup) -> int:
    """How many of their runs are unfinished."""
    return sum(not run.is_finished for group in groups for run in group.runs)


def _by_seed(group: RunGroup, measure: Measure) -> dict[int | None, float]:
    """Runs of the same seed, as of different days, count as one by their mean."""
    found: dict[int | None, list[float]] = {}
    for run in group.runs:
        value = measure(run)
        if value is not None:
            found.setdefault(run.seed, []).append(value)
    return {seed: fmean(values) for seed, values in found.items()}


def _welch_half_width(left: Sequence[float], right: Sequence[float]) -> float:
    parts = [variance(values) / len(values) for values in (left, right)]
    total = sum(parts)
    if total == 0:
        return 0.0
    degrees = total**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (left, right), strict=True)
    )
    return t_quantile(degrees) * math.sqrt(total)
