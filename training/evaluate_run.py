"""Score an exported run on its validation split, on any number of processes."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from data_prep.shards import open_corpus
from training.checkpoints.marker import damage_together
from training.dist import init_layout
from training.engine import build_engine, training_dtype
from training.evaluation import evaluate, heldout_stream, load_bands
from training.model import resolve_model_config, warn_of_remote_code
from training.model_checks import check_heads
from training.recipe_file import load_recipe
from training.task_results import write_result

_SP_KEY = "train.sequence_parallel_size"


def evaluate_run(run_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """Held-out loss of `run_dir/export`, by the bands that the run froze when it has any.

    Fewer processes than the run had share a sequence as far as they can; the numbers are the same.

    Args:
        run_dir: a run folder with an export.
        overrides: keys of the recipe, for example `data.corpus=data/other`.

    Returns:
        The result, which rank 0 also writes to `run_dir/evaluation.json`.

    Raises:
        ValueError: when there is no export, it has changed since, or there is no held-out data.
    """
    recipe = load_recipe(run_dir / "recipe.resolved.yaml", overrides)
    sp_size = recipe.train.sequence_parallel_size
    if not any(override.startswith(f"{_SP_KEY}=") for override in overrides):
        sp_size = math.gcd(sp_size, int(os.environ.get("WORLD_SIZE", "1")))
    exported = run_dir / "export"
    if not (exported / "config.json").exists():
        raise ValueError(f"{exported} is missing; run: python -m training export {run_dir}")
    model = dataclasses.replace(recipe.model, pretrained=str(exported), config=None)
    train = dataclasses.replace(recipe.train, sequence_parallel_size=sp_size)
    recipe = dataclasses.replace(recipe, model=model, train=train)
    layout = init_layout(sp_size=sp_size)
    if layout.is_main:
        warn_of_remote_code(recipe.model)
    if (broken := damage_together(exported, layout)) is not None:
        raise ValueError(
            f"the export is not as it was written: {broken}; run: python -m training export "
            f"{run_dir}"
        )
    corpus = open_corpus(recipe.data.corpus)
    pack = corpus.open_pack(recipe.data.sequence_tokens)
    stream = heldout_stream(pack, recipe, layout)
    model_config = resolve_model_config(
        recipe.model, vocab_size=corpus.vocab_size, dtype=training_dtype(recipe)
    )
    check_heads(model_config, sp_size=layout.sp_size)
    engine = build_engine(recipe, model_config, layout=layout, num_micro_steps=1, trains=False)
    frozen = run_dir / "heldout_bands"
    result = evaluate(engine, stream, load_bands(frozen) if frozen.exists() else None)
    if layout.is_main:
        write_result(run_dir / "evaluation.json", result)
    return result
