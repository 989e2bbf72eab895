"""Tokens, steps and days of a run at a share of the GPUs' peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.planner.architecture import Architecture
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
    num_passes: float
    """Forward passes of the same cost: 3 are forward and backward, 2 beside an adapter."""

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

    A forward pass takes 2 operations a weight and token, and 2 (Q K^T, then with V) x 2 x T / 2 x Q
    a layer for attention over T tokens before it on average T / 2; of experts those alone that a
    token meets; recurrences as `parts.py` has them. A backward pass twice that
    (Narayanan et al., arXiv 2104.04473, appendix), beside an adapter about as much. Activation
    checkpointing adds a forward pass, and so do online entropies and a teacher; `mir` has every
    training pass twice. Documents shorter
    than a sample take less than this.
    """
    train, length = recipe.train, recipe.data.sequence_tokens
    forward_flops = 2 * arch.multiplied_weights + sum(
        layer.attends * 2 * length * arch.queries
        + (layer.mixer.scores * length + layer.mixer.operations if layer.mixer else 0)
        for layer in arch.stack
    )
    # no gradients of frozen weights; an adapter's own products are few
    training_passes = 3.0 if arch.adapter is None else 2.0
    num_passes = recipe.num_passes * (training_passes + recipe.model.activation_checkpointing)
    num_passes += recipe.probes + (recipe.teacher is not None)
    steps = None
    if corpus_tokens is not None:
        total_samples = max(1, round(train.epochs * corpus_tokens / length))
        steps = math.ceil(total_samples * length / train.global_batch_tokens)
    if train.max_steps is not None:
        steps = min(steps or train.max_steps, train.max_steps)
    flops_per_token = num_passes * forward_flops
    return Duration(
        step_tokens=train.global_batch_tokens,
        micro_steps=micro_steps,
        corpus_tokens=corpus_tokens,
        epochs=train.epochs,
        total_steps=steps,
        step_seconds=train.global_batch_tokens * flops_per_token / flops_per_second,
        flops_per_token=flops_per_token,
        num_passes=num_passes,
    )
