"""What a plan does not know, and what may surprise in the run that it plans."""

from __future__ import annotations

from launch.planner.corpus import find_missing
from launch.planner.forecast import Forecast
from training.config.few_steps import notes_of_steps


def notes_of(given: Forecast) -> list[str]:
    """A sentence for each; the plan holds nevertheless."""
    recipe, time = given.recipe, given.duration
    if given.corpus is None:
        unknown = "steps and days are" if time.total_steps is None else "the tokens of an epoch are"
        return [f"{missing}, so {unknown} not known" for missing in find_missing(recipe)]
    epoch_tokens = given.corpus.epoch_tokens
    if time.total_steps is None or not epoch_tokens:  # of a mixture that takes nothing
        return []
    return notes_of_steps(recipe, total_steps=time.total_steps, epoch_tokens=epoch_tokens)
