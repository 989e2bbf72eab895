"""Each process gets its part of the cores of its host, with GPUs as without."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import warm_python

REPO_ROOT = Path(__file__).resolve().parents[2]
RECIPE = "training/recipes/quickstart.yaml"
CORES = len(os.sched_getaffinity(0))


def shown_by(*command: str, **variables: str) -> str:
    """What a launcher would run, on a machine with two GPUs."""
    dropped = ("DS_ACCELERATOR", "OMP_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    shown = subprocess.run(
        [*command, RECIPE, "--dry-run"],
        cwd=REPO_ROOT,
        env=inherited | {"CUDA_VISIBLE_DEVICES": "0,1", "PYTHON": warm_python()} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


NODE = {"NUM_NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize("launcher", ["launch/local.sh", "launch/kubernetes/worker.sh"])
def test_processes_with_gpus_share_the_cores(launcher: str) -> None:
    """torchrun would give each one thread, and an optimizer in host memory would crawl."""
    assert f"OMP_NUM_THREADS={max(CORES // 2, 1)} " in shown_by(launcher, **NODE)
    assert "OMP_NUM_THREADS=7 " in shown_by(launcher, **NODE, OMP_NUM_THREADS="7")


@pytest.mark.parametrize(
    ("job", "threads"),
    [
        ({"SLURM_CPUS_PER_TASK": "12"}, 12),
        ({"SLURM_CPUS_ON_NODE": "96", "SLURM_NNODES": "2", "SLURM_NTASKS": "16"}, 12),
        ({"SLURM_CPUS_ON_NODE": "2", "SLURM_NTASKS": "4"}, 1),
    ],
)
def test_tasks_of_slurm_use_the_cores_that_they_were_given(
    job: dict[str, str], threads: int
) -> None:
    assert f"OMP_NUM_THREADS={threads} " in shown_by("bash", "launch/slurm/train.sbatch", **job)
