"""Sweeps over runs of a few steps, planned and started."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.training.short_runs import short_recipe
from tests.warm_python import warm_python
from training.config.load import dump_recipe
from training.sweeps.grid import Mistakes, PlannedRun, parse_axes, plan_runs
from training.sweeps.jobs import steps_done

REPO_ROOT = Path(__file__).resolve().parents[2]


def write_recipe(corpus: Path, folder: Path, *, max_steps: int = 4) -> Path:
    """A recipe of one process whose runs go to `folder/runs`."""
    recipe = short_recipe(
        corpus,
        folder / "runs",
        evaluation={"every_steps": max_steps // 2, "max_samples": 4},
        checkpoint={"every_steps": 10},
    )
    changes: dict[str, Any] = {"sequence_parallel_size": 1, "micro_batch_samples": 8}
    changes["max_steps"] = max_steps
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(replace(recipe, train=replace(recipe.train, **changes))))
    return path


def planned(recipe: Path, *varied: str, seeds: str | None = None) -> list[PlannedRun]:
    mistakes = Mistakes()
    runs = plan_runs(recipe, [], parse_axes(varied, seeds), mistakes=mistakes)
    mistakes.raise_all()
    return runs


def sweep_command(recipe: Path, *arguments: str) -> list[str]:
    return [warm_python(), "-m", "training", "sweep", str(recipe), *arguments]


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", **changes}


@contextmanager
def started_sweep(recipe: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in the background, which a test that fails does not leave behind."""
    sweep = subprocess.Popen(
        sweep_command(recipe, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO_ROOT,
        env=environment(),
    )
    try:
        yield sweep
    finally:
        if sweep.poll() is None:
            sweep.terminate()
        sweep.communicate()


def run_command(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A sweep to its end."""
    with started_sweep(recipe, *arguments) as sweep:
        told = sweep.communicate(timeout=570)
    return subprocess.CompletedProcess(sweep.args, sweep.returncode, *told)


def wait_for_step(run_dir: Path, step: int, sweep: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while steps_done(run_dir) < step:
        assert sweep.poll() is None, sweep.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
