"""One way to train, as an arm of a study: what it changes in a recipe, and how it is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GENERAL = "GENERAL"
"""Stands in a recipe for the folder of the general corpus."""
Overrides = Mapping[str, Any]
"""By dotted recipe key. Keys that begin with `lr.` are factors of the learning rate."""


@dataclass(frozen=True)
class Arm:
    """A way to train."""

    name: str
    label: str
    """For tables and pictures."""
    fixed: Overrides
    tries: tuple[Overrides, ...] = ()
    """Settings to choose among, the likeliest first; each arm that tunes has as many."""
    is_baseline: bool = False
    """What others are compared with: it tries all its settings when the others try fewer."""
    like: tuple[str, ...] = ()
    """Arms whose chosen setting this one reuses; it tunes nothing of its own."""
    spared_by: str | None = None
    """Identical to that arm if both chose the same setting; then it is not run."""
    round: int = 0
    """Those of lower rounds run first."""
    passes: float = 1.0
    """Compute of a step, in those of plain training on as many tokens: a forward pass without
    gradient is a third."""


def tries(key: str, *values: float) -> tuple[Overrides, ...]:
    """One key at several values, the likeliest first."""
    return tuple({key: value} for value in values)


def settings_tried(arm: Arm, *, num: int) -> tuple[Overrides, ...]:
    """The likeliest settings of an arm, or all of the baseline's."""
    return arm.tries if arm.is_baseline else arm.tries[:num]


def overrides_of(arm: Arm, chosen: Overrides) -> dict[str, Any]:
    """What a recipe changes, given the setting that was chosen."""
    return {**arm.fixed, **chosen}
