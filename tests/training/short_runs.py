"""Runs of a few seconds that the tests of stopping, run states and the watchdog disturb."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training.layouts import tiny_recipe
from tests.warm_python import warm_python
from training.config.recipe import Recipe

ROOT = Path(__file__).parents[2]
SEQUENCE_TOKENS = 64
NUM_STEPS = 8


def short_recipe(corpus: Path, run_dir: Path, *, world_size: int = 2, **changes: Any) -> Recipe:
    """Two ranks share each sequence, in one micro-step a step; no save but the last."""
    num_rows = min(8, 8 * changes.get("train__sequence_parallel_size", 2) // world_size)
    return tiny_recipe(
        **{
            "run_dir": str(run_dir),
            "data": {"corpus": str(corpus), "sequence_tokens": SEQUENCE_TOKENS},
            "model__config__vocab_size": 512,
            "model__config__num_hidden_layers": 1,
            "train": {
                "global_batch_tokens": 8 * SEQUENCE_TOKENS,
                "max_steps": NUM_STEPS,
                "epochs": 100,
                "sequence_parallel_size": 2,
                "micro_batch_samples": num_rows,
            },
            "schedule": {"kind": "cosine", "warmup_frac": 0.25},
            "dropout__curriculum": {"kind": "linear"},
            "evaluation": {"every_steps": 3, "max_samples": 6},
            **changes,
        }
    )


def saving_recipe(corpus: Path, run_dir: Path, **changes: Any) -> Recipe:
    """The same, saved every third step."""
    return short_recipe(corpus, run_dir, **{"checkpoint__every_steps": 3, **changes})


def metrics(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of a kind without what depends on the clock."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timeless = ("seconds", "tokens_per_second", "model_tflops", "hardware_tflops")
    return [
        {key: value for key, value in row.items() if key not in timeless}
        for row in rows
        if row["kind"] == kind
    ]


def train_on_rank(recipe: Recipe) -> None:
    from training.run.run import train

    train(recipe)


def train_with_changes(recipe: Recipe, accepted: list[str]) -> None:
    from training.run.run import train

    train(recipe, accepted=accepted)


def message_of_error(recipe: Recipe) -> str:
    with pytest.raises(ValueError) as caught:
        train_on_rank(recipe)
    return str(caught.value)


def training_command(
    *arguments: str, launcher: Sequence[str] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """`python -m training`, or the same by a launcher such as `-m torch.distributed.run`."""
    return subprocess.run(
        [warm_python(), *launcher, "-m", "training", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=check,
        timeout=180,
    )
