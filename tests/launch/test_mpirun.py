"""launch/mpirun.sh on this machine: the mpirun of its Python, and the losses of other launchers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launch.shared_runs import state_of, undisturbed_losses, write_recipe
from tests.mpi import find_mpirun
from tests.training.short_runs import NUM_STEPS, metrics, short_recipe
from tests.warm_python import warm_path, warm_python

REPO_ROOT = Path(__file__).resolve().parents[2]
START = ["launch/mpirun.sh", "training/recipes/quickstart.yaml", "-n", "2"]
PREPARE = ["bash", "launch/slurm/prep.sbatch"]


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script of ours from a shell that is in no Slurm job and sees no GPU."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.run(
        [*map(str, command)],
        cwd=REPO_ROOT,
        env=inherited | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python with nothing beside it."""
    (tmp_path / "bin").mkdir()
    return program(tmp_path / "bin" / "python", f'exec {sys.executable} "$@"')


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "command", [[*START, "--dry-run"], [*PREPARE, "--dry-run", "verify", "corpus"]]
)
def test_the_mpirun_beside_the_python_comes_before_that_of_the_path(
    python: Path, tmp_path: Path, command: list[str]
) -> None:
    """mpi4py loads the library beside its Python first, and sees one process under another."""
    shown = run(*command, PYTHON=str(python))
    assert shown.returncode == 0, shown.stderr
    assert " mpirun " in shown.stdout
    beside = program(python.with_name("mpirun"), "")
    assert f" {beside} " in run(*command, PYTHON=str(python)).stdout


@pytest.mark.parametrize("command", [START, [*PREPARE, "verify", "corpus"]])
def test_without_an_mpirun_it_is_said_how_to_get_one(
    python: Path, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "tools").mkdir()
    for tool in Path("/usr/bin").iterdir():
        if not tool.name.startswith("mpirun"):
            (tmp_path / "tools" / tool.name).symlink_to(tool)
    tools = {"PATH": f"{tmp_path}/tools", "PYTHON": str(python), "SLURM_JOB_ID": "1"}
    if command is START:
        del tools["SLURM_JOB_ID"]
    refused = run(*command, **tools)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.startswith("error: there is no mpirun")
    assert "openmpi-bin" in refused.stderr and f"{python} -m pip install" in refused.stderr


def test_settings_of_its_daemons_reach_open_mpi_5_by_its_own_name(
    python: Path, tmp_path: Path
) -> None:
    """It passes over the old ones without a word, and a lost host is noticed minutes later."""
    program(python.with_name("mpirun"), f"env >{tmp_path}/arrived")
    own = {"OMPI_MCA_oob_tcp_if_include": "eth7", "PRTE_MCA_oob_tcp_keepalive_probes": "9"}
    run(*START, f"run_dir={tmp_path}/run", PYTHON=str(python), **own)
    arrived = (tmp_path / "arrived").read_text().splitlines()
    for name, value in {"if_include": "eth7", "keepalive_time": "15"}.items():
        assert f"OMPI_MCA_oob_tcp_{name}={value}" in arrived
        assert f"PRTE_MCA_oob_tcp_{name}={value}" in arrived
    assert "PRTE_MCA_oob_tcp_keepalive_probes=9" in arrived


@pytest.mark.slow
def test_ranks_of_mpirun_train_as_ranks_of_another_launcher(
    small_corpus: Path, tmp_path: Path
) -> None:
    if find_mpirun() is None:
        pytest.skip("needs mpirun")
    recipe = short_recipe(small_corpus, tmp_path / "expected")
    expected = undisturbed_losses(recipe)
    recipe = replace(recipe, run_dir=str(tmp_path / "run"))
    path = write_recipe(recipe, tmp_path / "recipe.yaml")
    found = {"PYTHON": warm_python(), "PATH": warm_path()}
    done = run("launch/mpirun.sh", path, "-n", 2, OMP_NUM_THREADS="1", **found)
    assert done.returncode == 0, done.stderr
    assert state_of(tmp_path / "run") == ("complete", NUM_STEPS)
    assert metrics(tmp_path / "run", "step") == expected
    # neither a notice of mpirun about its own options nor one about this machine
    assert "------" not in done.stderr and "deprecated" not in done.stderr, done.stderr
