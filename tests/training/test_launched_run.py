"""The same run by every launcher, and what a command line can get wrong."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.training.short_runs import (
    metrics,
    saving_recipe,
    training_command,
)
from tests.warm_python import warm_python
from training.config.load import dump_recipe

ROOT = Path(__file__).parents[2]


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training"),
    "deepspeed": ("deepspeed.launcher.runner", "--num_gpus=2", "--module", "training"),
    "alone": ("training",),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_trains_the_same_run(finished, small_corpus, tmp_path, launcher):
    run_dir = tmp_path / "run"
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(dump_recipe(saving_recipe(small_corpus, run_dir)), encoding="utf-8")
    overrides = ["train.stop_after_steps=2", "evaluation.max_samples=4"]
    if launcher == "alone":
        overrides.append("train.sequence_parallel_size=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    secrets = {"HF_TOKEN": "hf_planted1", "WANDB_API_KEY": "wandb_planted2"}
    done = subprocess.run(
        [warm_python(), "-m", *LAUNCHERS[launcher], "train", str(recipe_file), *overrides],
        cwd=ROOT,
        env=environment | secrets,
        check=True,
        timeout=240,
        capture_output=True,
    )
    written = [path.read_bytes() for path in run_dir.rglob("*") if path.is_file()]
    for text in (done.stdout, done.stderr, *written):
        assert b"_planted" not in text  # tokens of the environment stay there
    assert len(written) > 5
    for found, expected in zip(metrics(run_dir, "step"), metrics(finished, "step"), strict=False):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert len(metrics(run_dir, "step")) == 2


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        # the second where there is no MPI
        (
            "OMPI_COMM_WORLD_SIZE",
            "mpirun has started 2 processes, but (mpi4py sees 1|Python cannot load its MPI)",
        ),
        ("SLURM_STEP_NUM_TASKS", "srun has started 2 processes, but MASTER_ADDR and MASTER_PORT"),
        ("RANK", "RANK is set to 2, but not WORLD_SIZE"),
    ],
)
def test_processes_that_do_not_know_their_ranks_are_refused(finished, tmp_path, variable, told):
    """Each of them would train a run of its own in the same folder."""
    environment = {**os.environ, variable: "2", "DS_ACCELERATOR": "cpu"}
    recipe = finished / "recipe.resolved.yaml"
    started = subprocess.run(
        [warm_python(), "-m", "training", "train", str(recipe), f"run_dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert started.returncode == 2
    assert re.search(f"^error: {told}", started.stderr, re.MULTILINE), started.stderr
    assert not (tmp_path / "run").exists()


def test_mistakes_of_the_command_line_are_told_without_a_traceback(tmp_path):
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text("run_dir: x\ntrian: {}\n", encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        training_command("train", str(recipe_file))
    assert caught.value.returncode == 2
    assert "did you mean train?" in caught.value.stderr
    assert "Traceback" not in caught.value.stderr


@pytest.mark.parametrize("verb", ["train", "evaluate", "export", "report"])
def test_help_of_every_verb_says_what_it_does(verb):
    assert "usage: python -m training" in training_command(verb, "--help").stdout
