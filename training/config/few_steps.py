"""What a start and a plan say of a run that has few steps."""

from __future__ import annotations

import math

from training.config.recipe import Recipe

FEW_STEPS = 50
"""Adam's averages alone span 20 steps (beta2 0.95), and recipes of published models first evaluate
at step 50: a shorter run has hardly begun, and shows no curve."""


def notes_of_steps(recipe: Recipe, *, total_steps: int, epoch_tokens: int) -> list[str]:
    """A sentence for a batch that leaves little data hardly an update, and for what never comes.

    Neither where the recipe asks for so few steps itself.

    Args:
        epoch_tokens: padding counts, as it does in a step.
    """
    train = recipe.train
    wanted = min(train.max_steps or math.inf, train.stop_after_steps or math.inf)
    notes = []
    steps = "step" if total_steps == 1 else "steps"
    if (
        total_steps < FEW_STEPS <= wanted
        and train.global_batch_tokens > recipe.data.sequence_tokens
    ):
        are = "epoch is" if train.epochs == 1 else "epochs are"
        notes.append(
            f"{train.epochs:g} {are} only {total_steps} optimizer {steps}, as "
            f"train.global_batch_tokens {train.global_batch_tokens:,} is "
            f"{train.global_batch_tokens / epoch_tokens:.2g} times an epoch; fewer tokens a step "
            "learn more from little data"
        )
    intervals = {
        "evaluation.every_steps": recipe.evaluation.every_steps,
        "checkpoint.every_steps": recipe.checkpoint.every_steps,
    }
    notes += [
        f"{key} {interval:,} is never due before the end: the run has {total_steps:,} {steps}"
        for key, interval in intervals.items()
        if interval is not None and total_steps < interval <= wanted
    ]
    return notes
