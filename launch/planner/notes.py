"""What a plan does not know."""

from __future__ import annotations

from launch.planner.corpus import find_missing
from launch.planner.forecast import Forecast


def notes_of(given: Forecast) -> list[str]:
    """A sentence for each; the plan holds nevertheless."""
    recipe, time = given.recipe, given.duration
    if given.corpus is None:
        unknown = "steps and days are" if time.total_steps is None else "the tokens of an epoch are"
        return [f"{missing}, so {unknown} not known" for missing in find_missing(recipe)]
    return []
