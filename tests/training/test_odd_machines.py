"""Machines without what one takes for granted: network, home, writable data, a steady clock."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.training.short_runs import NUM_STEPS, metrics, short_recipe, train_on_rank
from tests.warm_python import warm_python
from training.config.load import dump_recipe
from training.config.recipe import Recipe
from training.ranks.run_state import read_run_state

ROOT = Path(__file__).parents[2]
DAY_SECONDS = 86_400.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount folders read-only")


# iproute2 is not everywhere
_LOOPBACK_UP = """python3 -c "import fcntl, socket, struct
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack('16sh', b'lo', IFF_UP))
" """


def run_apart(
    script: str, *folders: Path, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """A script without any network but loopback, where the folders cannot be written."""
    mounts = [f"mount --bind {path} {path}; mount -o remount,ro,bind {path}" for path in folders]
    lines = ["set -e", _LOOPBACK_UP, *mounts, f"cd {ROOT}", script]
    return subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "bash",
            "-c",
            "\n".join(lines),
        ],
        env=os.environ | {"PYTHON": python, "HOME": "/proc/none", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_root
def test_a_run_needs_no_network_no_home_and_no_writable_data(finished, small_corpus, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(short_recipe(small_corpus, tmp_path / "run")))
    importing = f"{sys.executable} -c 'import training.run.run'"
    training = f"launch/local.sh {recipe} --cpu"
    done = run_apart(f"{importing}; {training}", small_corpus, ROOT, python=warm_python())
    assert done.returncode == 0, done.stderr
    for kind in ("step", "evaluation"):
        assert metrics(tmp_path / "run", kind) == metrics(finished, kind)


@needs_root
def test_a_run_folder_that_cannot_be_written_is_refused_by_name(small_corpus, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(short_recipe(small_corpus, locked / "run")))
    done = run_apart(
        f"$PYTHON -m training train {recipe} train.sequence_parallel_size=1",
        *(locked, small_corpus),
        python=warm_python(),
    )
    assert done.returncode == 2
    assert f"error: run_dir {locked / 'run'}: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_clock_that_jumps_changes_nothing(finished, small_corpus, tmp_path):
    recipe = short_recipe(
        small_corpus, tmp_path / "run", checkpoint={"every_steps": 3}, watchdog={"seconds": 30.0}
    )
    run_ranks(train_while_the_clock_jumps, recipe, world_size=2)
    for kind in ("step", "evaluation"):
        assert metrics(tmp_path / "run", kind) == metrics(finished, kind)
    state = read_run_state(tmp_path / "run")
    assert (state.state, state.step) == ("complete", NUM_STEPS)
    assert not list((tmp_path / "run").glob("hang-*"))


def train_while_the_clock_jumps(recipe: Recipe) -> None:
    """A day ahead, a day back, at each look: as when a clock is set while a job runs."""
    true_time, jumps = time.time, itertools.cycle((0.0, DAY_SECONDS, -DAY_SECONDS))
    time.time = lambda: true_time() + next(jumps)
    train_on_rank(recipe)
