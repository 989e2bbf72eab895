"""The held-out losses of weights between a run's base and its tuned ones, share by share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.durable import atomic_write
from training.checkpoints.choice import explaining_removals
from training.checkpoints.mixing import (
    Mix,
    Weights,
    find_mix,
    interpolate,
    load_base,
    refuse_no_share,
)
from training.config.load import KEPT_RECIPE, load_recipe
from training.config.recipe import Recipe
from training.metrics.file import finite
from training.model.ds_config import training_dtype
from training.ranks.dist import broadcast_from_rank0, init_layout, together
from training.run.evaluate_run import RunEvaluation, measures_alike, recipe_for_evaluation

FILE = "interpolation.json"


def interpolate_run(
    run_dir: Path,
    overrides: list[str],
    *,
    shares: Sequence[float],
    words: Sequence[str] = (),
    averaged: bool = False,
    show: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate each share of the way from the base to a checkpoint; every rank calls it.

    Rank 0 needs CPU memory for three sets of weights in fp32.

    Args:
        run_dir: a run that began with a pretrained model.
        overrides: keys of the recipe, for example `evaluation.max_samples=500`.
        shares: of the tuned weights, from 0 to 1.
        words, averaged: the checkpoint, or those whose mean is tuned, as `find_mix` takes them.
        show: is given each row as soon as it is measured, on every rank.

    Returns:
        `rows`, one for each share, with the losses that `export --interpolate-base` gives the same
        weights; `best_share`, that of the lowest one by `evaluation.best_by`. Rank 0 also writes
        them to `run_dir/interpolation.json` when they are of the run's own data.

    Raises:
        ValueError: for a run from scratch, a share that is none, or what `evaluate_run` refuses.
    """
    recipe = recipe_for_evaluation(run_dir, overrides)
    for share in shares:
        refuse_no_share(share)
    layout = init_layout(sp_size=recipe.train.sequence_parallel_size)

    def load() -> _Ends | None:
        if not layout.is_main:
            return None
        with explaining_removals(run_dir):
            return _Ends.load(recipe, find_mix(run_dir, words, averaged=averaged))

    ends = together(load)
    # an adapter's weights are merged into the base's
    evaluation = RunEvaluation.open(run_dir, replace(recipe, adapter=None), layout)
    rows: list[dict[str, Any]] = []
    for share in shares:
        evaluation.engine.put(ends.at(share) if ends else None)
        rows.append({"tuned_share": share} | finite(evaluation.row()))
        show(rows[-1])
    judged = [row for row in rows if row["loss"] is not None]
    result = {
        "steps": broadcast_from_rank0(ends and ends.mix.steps),
        "corpus": recipe.data.corpus,
        "pack": evaluation.pack.fingerprint,
        "best_share": min(judged, key=lambda row: row["loss"])["tuned_share"] if judged else None,
        "rows": rows,
    }
    if layout.is_main and measures_alike(recipe, load_recipe(run_dir / KEPT_RECIPE, [])):
        atomic_write(run_dir / FILE, json.dumps(result, indent=1) + "\n")
    return result


@dataclass(frozen=True)
class _Ends:
    """What is interpolated, in fp32, whole, on rank 0."""

    mix: Mix
    base: Weights
    tuned: Weights
    dtype: torch.dtype

    @classmethod
    def load(cls, recipe: Recipe, mix: Mix) -> _Ends:
        mix.refuse_what_cannot_be_mixed(recipe.model, adapter=recipe.adapter, needs_base=True)
        return cls(
            mix,
            load_base(recipe.model, mix.checkpoints[-1]).state_dict(),
            mix.load(recipe.model, dtype=torch.float32, adapter=recipe.adapter),
            training_dtype(recipe.deepspeed),
        )

    def at(self, share: float) -> Weights:
        """As an export has them."""
        mixed = interpolate(self.base, self.tuned, tuned_share=share)
        return {name: mixed.pop(name).to(self.dtype) for name in list(mixed)}
