"""Variables of the shell arrive on the hosts of a hostfile as they are, by both launchers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.warm_python import warm_python

REPO_ROOT = Path(__file__).resolve().parents[2]
RECIPE = "training/recipes/quickstart.yaml"
# In the place of pdsh: the other host's shell, with DeepSpeed's exports and nothing of this one.
PDSH = """#!/usr/bin/env bash
shift 5
command="$*"
env -i bash -c "${command%%cd /*} /usr/bin/env" >"$ARRIVED"
echo "$command" >"$ARRIVED.command"
"""
Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A launcher on two hosts that are not there, from a head node without a GPU."""
    for name, text in (("pdsh", PDSH), ("ssh", "#!/bin/sh\necho 127.0.0.2\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hosts.txt").write_text("127.0.0.2 slots=2\n127.0.0.3 slots=2\n")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DS_ACCELERATOR", "OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT")
    }

    def run(launcher: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [f"launch/{launcher}.sh", RECIPE, "--hostfile", str(tmp_path / "hosts.txt")]
        return subprocess.run(
            [*command, f"run_dir={tmp_path / 'run'}", *arguments],
            cwd=REPO_ROOT,
            env=inherited
            | {
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHON": warm_python(),
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "ARRIVED": str(tmp_path / "arrived"),
            }
            | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_values_arrive_as_they_are_through_deepspeeds_own_exports(
    start: Start, tmp_path: Path
) -> None:
    """A backslash before the comma would name a network card that no host has."""
    sent = {
        "NCCL_IB_HCA": "mlx5_0,mlx5_1",
        "NCCL_DEBUG_FILE": "/tmp/of run;(1) *.log",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }
    done = start("deepspeed", **sent)
    arrived = (tmp_path / "arrived").read_text().splitlines()
    assert not [line for line in arrived if line.startswith("CUDA_VISIBLE_DEVICES=")]
    for name, value in (sent | {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}).items():
        assert f"{name}={value}" in arrived, done.stderr


@pytest.mark.parametrize("value", ['"a"', "$HOME", "`id`", "a\\b", "a\nb"])
def test_a_value_that_another_shell_would_change_is_refused(start: Start, value: str) -> None:
    done = start("deepspeed", "--dry-run", NCCL_IB_HCA=value)
    assert done.returncode == 2
    assert "error: NCCL_IB_HCA cannot be passed to other hosts" in done.stderr


@pytest.mark.parametrize("launcher", ["deepspeed", "mpirun"])
def test_what_a_head_node_without_gpus_chooses_for_itself_stays_there(
    start: Start, launcher: str
) -> None:
    """DS_ACCELERATOR=cpu would keep hosts from their GPUs, one thread would slow an offload."""
    shown = start(launcher, "--dry-run").stdout
    assert "NCCL_DEBUG=WARN" in shown
    assert "DS_ACCELERATOR" not in shown and "OMP_NUM_THREADS" not in shown
    shown = start(launcher, "--dry-run", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="3").stdout
    assert "DS_ACCELERATOR=cpu" in shown and "OMP_NUM_THREADS=3" in shown


def test_deepspeeds_launcher_keeps_its_accelerator_to_itself(start: Start, tmp_path: Path) -> None:
    done = start("deepspeed", PYTHON=sys.executable)  # which has not looked for one yet
    assert "NCCL_DEBUG=WARN" in (tmp_path / "arrived").read_text(), done.stderr
    assert "DS_ACCELERATOR" not in (tmp_path / "arrived").read_text()
    # nor does it warn that it has found none
    assert "accelerator" not in done.stdout + done.stderr


def test_an_address_that_the_user_chose_is_where_the_ranks_meet(start: Start) -> None:
    """Of several networks only the user knows the right one."""
    chosen = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4242"}
    shown = start("deepspeed", "--dry-run", **chosen).stdout
    assert "--master_addr 10.0.0.1 --master_port 4242" in shown
    shown = start("mpirun", "--dry-run", **chosen).stdout
    assert "MASTER_ADDR=10.0.0.1 MASTER_PORT=4242" in shown
    assert "-x MASTER_ADDR -x MASTER_PORT" in shown


@pytest.mark.parametrize("launcher", ["deepspeed", "mpirun"])
def test_changes_that_a_resume_accepts_travel(start: Start, launcher: str) -> None:
    shown = start(
        launcher, "--dry-run", "--accept-changes", "optimizer.lr", "seed", "train.epochs=3"
    )
    assert "train.epochs=3 --accept-changes optimizer.lr seed" in shown.stdout, shown.stderr


@pytest.mark.parametrize("name", ["DEEPSPEED_TIMEOUT", "HF_HUB_CACHE"])
def test_what_every_rank_must_know_travels(start: Start, name: str) -> None:
    assert f"{name}=/1" in start("mpirun", "--dry-run", **{name: "/1"}).stdout


def test_secrets_stay_at_home(start: Start) -> None:
    secrets = {"HF_HUB_TOKEN": "planted", "DS_API_KEY": "planted", "AWS_SECRET": "planted"}
    assert "planted" not in start("mpirun", "--dry-run", **secrets).stdout
