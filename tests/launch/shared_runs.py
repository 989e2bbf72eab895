"""A small run that launchers start on two hosts, are disturbed in, and go on with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.distributed import run_ranks
from tests.training.short_runs import metrics, short_recipe, train_on_rank
from tests.warm_python import warm_python
from training.config.load import dump_recipe
from training.config.recipe import Recipe
from training.ranks.run_state import read_run_state

REPO_ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 60


def shared_recipe(corpus: Path, run_dir: Path) -> Recipe:
    """Steps of a tenth of a second at most, a save every tenth, a watchdog of 8 seconds."""
    recipe = short_recipe(
        corpus,
        run_dir,
        evaluation={"every_steps": None},
        checkpoint={"every_steps": 10},
        watchdog={"seconds": 8.0, "slow_seconds": 60.0},
    )
    one_micro_step = {"max_steps": NUM_STEPS, "micro_batch_samples": 8}
    return replace(recipe, train=replace(recipe.train, **one_micro_step))


def write_recipe(recipe: Recipe, path: Path) -> Path:
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


def undisturbed_losses(recipe: Recipe) -> list[dict[str, Any]]:
    """Rows of all steps of the recipe on two ranks of this machine."""
    run_ranks(train_on_rank, recipe, world_size=2)
    return metrics(Path(recipe.run_dir), "step")


def cluster_environment(**changes: str) -> dict[str, str]:
    """What a user of the cluster has in their shell; name the plain `PYTHON` to see its starts."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONDONTWRITEBYTECODE")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    keep_alive = "-o ServerAliveInterval=2 -o ServerAliveCountMax=2"
    return environment | {
        "PYTHON": warm_python(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PDSH_SSH_ARGS_APPEND": keep_alive,
        "OMP_NUM_THREADS": "1",
        **changes,
    }


def wait_for_steps(
    run_dir: Path, number: int, *, of: subprocess.Popen[str] | None = None, seconds: float = 120
) -> None:
    """Until the run has written so many steps.

    Raises:
        AssertionError: when it does not, or ends before.
    """
    deadline = time.monotonic() + seconds
    path = run_dir / "metrics.jsonl"
    while not path.exists() or path.read_text().count('"kind": "step"') < number:
        if of is not None and of.poll() is not None:
            raise AssertionError(f"ended before step {number}: {of.communicate()[0]}")
        assert time.monotonic() < deadline, f"no step {number} in {seconds} s"
        time.sleep(0.05)


def state_of(run_dir: Path) -> tuple[str, int]:
    found = read_run_state(run_dir)
    return found.state, found.step
