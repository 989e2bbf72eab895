"""Tokens, steps and days of a run at a share of the GPUs' peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.planner.architecture import Architecture
from training.config.passes import Passes, forward_flops, passes_of, runs_tiles
from training.config.recipe import Recipe


@dataclass(frozen=True)
class Duration:
    """How long a run is; None where the size of the corpus is not known."""

    step_tokens: int
    micro_steps: int
    corpus_tokens: int | None
    """Of an epoch."""
    epochs: float
    total_steps: int | None
    step_seconds: float
    flops_per_token: float
    """Of all passes that run."""
    passes: Passes

    @property
    def days(self) -> float | None:
        if self.total_steps is None:
            return None
        return self.total_steps * self.step_seconds / 86_400


def forecast_duration(
    recipe: Recipe,
    arch: Architecture,
    *,
    micro_steps: int,
    corpus_tokens: int | None,
    flops_per_second: float,
) -> Duration:
    """Time of the matrix products alone; evaluations and saves are not in it.

    What a token takes is in `training.config.passes`; of experts those alone count that a token
    meets, and recurrences as `parts.py` has them.
    """
    train, length = recipe.train, recipe.data.sequence_tokens
    mixers = [layer.mixer for layer in arch.stack if layer.mixer]
    forward = forward_flops(
        weights=arch.multiplied_weights,
        layers=sum(layer.attends for layer in arch.stack),
        queries=arch.queries,
        sequence_tokens=length,
    )
    forward += sum(mixer.scores * length + mixer.operations for mixer in mixers)
    is_tiled = runs_tiles(recipe, hidden=arch.hidden)
    of_mlps = 2.0 * sum(sum(arch.mlp_weights(layer)) for layer in arch.stack) if is_tiled else 0.0
    passes = passes_of(recipe, mlp_share=of_mlps / forward)
    flops_per_token = passes.hardware * forward
    steps = None
    if corpus_tokens is not None:
        total_samples = max(1, round(train.epochs * corpus_tokens / length))
        steps = math.ceil(total_samples * length / train.global_batch_tokens)
    if train.max_steps is not None:
        steps = min(steps or train.max_steps, train.max_steps)
    return Duration(
        step_tokens=train.global_batch_tokens,
        micro_steps=micro_steps,
        corpus_tokens=corpus_tokens,
        epochs=train.epochs,
        total_steps=steps,
        step_seconds=train.global_batch_tokens * flops_per_token / flops_per_second,
        flops_per_token=flops_per_token,
        passes=passes,
    )
