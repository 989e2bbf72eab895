"""Numbers that follow from recipe, data and layout, and what a resume must find unchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from common import replay_share
from data_prep.shards import Mixture, PackIndex, with_replay
from training.config.layout import batch_shape
from training.config.recipe import Recipe
from training.ranks.dist import Layout


@dataclass(frozen=True)
class Plan:
    """Numbers derived from recipe, data and layout; printed at the start, kept with the run."""

    world_size: int
    data_parallel_size: int
    sequence_parallel_size: int
    samples_per_step: int
    micro_steps: int
    samples_per_epoch: int
    total_samples: int
    total_steps: int
    planned_tokens: int
    tokens_per_epoch: int
    targets_per_epoch: int

    def position(self, *, step: int, tokens: int) -> dict[str, Any]:
        """Where a run is after `step`, for the rows of its metrics."""
        samples = min(step * self.samples_per_step, self.total_samples)
        return {"step": step, "tokens": tokens, "epoch": samples / self.samples_per_epoch}


def choose_mixture(recipe: Recipe, pack: PackIndex, replay: PackIndex | None = None) -> Mixture:
    """What an epoch takes of each domain: set by the recipe, else by `pack`; then of replay."""
    if pack.num_targets("train") == 0:
        raise ValueError(
            f"data.corpus {recipe.data.corpus}: the train split has nothing to train on"
        )
    try:
        mixture = pack.mixture(recipe.data.mixture)
    except ValueError as error:
        raise ValueError(f"data.{error}") from None
    if recipe.replay is None or replay is None:
        return mixture
    try:
        return with_replay(
            mixture, replay.manifest.splits["train"].domains, share=recipe.replay.share
        )
    except ValueError as error:
        raise ValueError(f"replay.{error}") from None


def refuse_small_replay(recipe: Recipe, mixture: Mixture, plan: Plan) -> None:
    """A run that would see a sample of replay twice, unless the recipe says that it may."""
    if recipe.replay is None or recipe.replay.repeats:
        return
    replay_share.refuse_small_replay(
        mixture,
        total_samples=plan.total_samples,
        share=recipe.replay.share,
        corpus=recipe.replay.corpus,
    )


def derive_plan(recipe: Recipe, pack: PackIndex, mixture: Mixture, layout: Layout) -> Plan:
    """All numbers that follow from recipe, data and layout.

    Raises:
        ValueError: for a batch that does not divide or exceeds the run, or domains without a
            target.
    """
    samples_per_step, micro_steps = batch_shape(
        global_batch_tokens=recipe.train.global_batch_tokens,
        sequence_tokens=recipe.data.sequence_tokens,
        micro_batch_samples=recipe.train.micro_batch_samples,
        dp_size=layout.dp_size,
    )
    samples_per_epoch = sum(share.samples_per_epoch for share in mixture)
    tokens_per_epoch = sum(share.tokens_per_epoch for share in mixture)
    targets_per_epoch = sum(share.targets_per_epoch for share in mixture)
    if targets_per_epoch == 0:
        raise ValueError("data.mixture: the domains it takes have nothing to train on")
    total_samples = max(1, round(recipe.train.epochs * samples_per_epoch))
    if samples_per_step > total_samples:
        length = recipe.data.sequence_tokens
        raise ValueError(
            f"train.global_batch_tokens {recipe.train.global_batch_tokens} is {samples_per_step} "
            f"samples, but {recipe.train.epochs:g} epochs of data.corpus {recipe.data.corpus} have "
            f"{total_samples}: at most {total_samples * length}, or more train.epochs"
        )
    if recipe.train.max_steps is not None:
        total_samples = min(total_samples, recipe.train.max_steps * samples_per_step)
    return Plan(
        world_size=layout.world_size,
        data_parallel_size=layout.dp_size,
        sequence_parallel_size=layout.sp_size,
        samples_per_step=samples_per_step,
        micro_steps=micro_steps,
        samples_per_epoch=samples_per_epoch,
        total_samples=total_samples,
        total_steps=math.ceil(total_samples / samples_per_step),
        planned_tokens=round(tokens_per_epoch * total_samples / samples_per_epoch),
        tokens_per_epoch=tokens_per_epoch,
        targets_per_epoch=targets_per_epoch,
    )
