"""What a user may not expect of a start that nothing speaks against, in sentences."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from training.checkpoints.manifest import other_versions, read_manifest
from training.config.few_steps import notes_of_steps
from training.config.recipe import Recipe
from training.config.regularisers import Baseline
from training.run.heldout import domains_left_out, set_key
from training.run.start import Start


def print_surprises(recipe: Recipe, start: Start, newest: Path | None) -> None:
    """A line on stderr for each; on rank 0."""
    for surprise in surprises(recipe, start, newest):
        print(f"WARNING: {surprise}", file=sys.stderr, flush=True)


def surprises(recipe: Recipe, start: Start, newest: Path | None) -> list[str]:
    """Every one of them.

    Args:
        newest: the checkpoint that the run resumes from, if any.
    """
    found = []
    total_steps, wanted = start.plan.total_steps, recipe.train.max_steps
    if wanted is not None and wanted > total_steps:
        found.append(
            f"train.max_steps {wanted} is not reached: train.epochs {recipe.train.epochs:g} ends "
            f"the run after {total_steps} steps"
        )
    epoch_tokens = start.plan.samples_per_epoch * recipe.data.sequence_tokens
    found += notes_of_steps(recipe, total_steps=total_steps, epoch_tokens=epoch_tokens)
    if recipe.profile is not None:
        found += _of_profile(recipe, total_steps, newest)
    if recipe.has_clean_pass:
        found.append(
            "regularisers: mir takes two forward and backward passes for each micro-batch: a step "
            "is about twice as long"
        )
    if unused := _unused_strengths(recipe):
        found.append(
            f"{' and '.join(unused)}: not used, as regularisers is "
            f"[{', '.join(recipe.regularisers)}]"
        )
    teacher, base = recipe.teacher, recipe.model.pretrained
    if teacher is not None and teacher.kind == "base" and base is None:
        found.append(
            "teacher.kind: base teaches the predictions of random weights, with which model.config "
            "begins"
        )
    for name, stream in start.heldout.items():
        found += [
            f"{set_key(recipe, name)}: domain {domain} is not among the first "
            f"{stream.total_samples} {stream.split} samples"
            for domain in domains_left_out(
                start.data.heldout[name],
                recipe.evaluation.named_sets[name],
                num_samples=stream.total_samples,
            )
        ]
    weights = recipe.data.mixture or start.data.pack.manifest.weights
    found += [
        f"data.mixture: {share.name} rounds to none of its {len(share.samples)} samples an epoch"
        for share in start.mixture
        if share.name in weights
        and (weights[share.name].epochs or weights[share.name].proportion)
        and not share.samples_per_epoch
    ]
    if newest is not None:
        others = other_versions(read_manifest(newest))
        found += [f"{newest} was saved with {other}" for other in others]
    return found


def _of_profile(recipe: Recipe, total_steps: int, newest: Path | None) -> list[str]:
    assert recipe.profile is not None
    first, num_steps = recipe.profile.first_step, recipe.profile.num_steps
    begins = 1 + (int(read_manifest(newest)["step"]) if newest else 0)
    ends = min(total_steps, recipe.train.stop_after_steps or total_steps)
    if begins <= first and first + num_steps - 1 <= ends:
        return []
    return [
        f"profile: no trace, since it would be of steps {first} to {first + num_steps - 1}, and "
        f"this start takes steps {begins} to {ends}: set profile.first_step"
    ]


def _unused_strengths(recipe: Recipe) -> list[str]:
    """Keys of `baseline` that are set, of regularisers that are not named."""
    usual = Baseline()
    return [
        f"baseline.{field.name}"
        for field in fields(usual)
        if getattr(recipe.baseline, field.name) != getattr(usual, field.name)
        and not any(field.name.startswith(name) for name in recipe.regularisers)
    ]
