"""What a user may not expect of a start that nothing speaks against, in sentences."""

from __future__ import annotations

import sys
from pathlib import Path

from training.checkpoints.manifest import other_versions, read_manifest
from training.config.recipe import Recipe
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
    if recipe.has_clean_pass:
        found.append(
            "regularisers: mir takes two forward and backward passes for each micro-batch: a step "
            "is about twice as long"
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
