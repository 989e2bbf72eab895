"""Real launchers on two hosts: they stop in order, survive faults, and go on exactly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.launch.hosts import Hosts, needs_hosts
from tests.launch.shared_runs import (
    NUM_STEPS,
    cluster_environment,
    shared_recipe,
    state_of,
    undisturbed_losses,
    wait_for_steps,
    write_recipe,
)
from tests.mpi import MPI_OF_HOSTS
from tests.training.short_runs import metrics
from training.config.recipe import Recipe

pytestmark = [needs_hosts, pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts")) as up:
        yield up


@pytest.fixture(scope="module")
def recipe(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return shared_recipe(small_corpus, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture(scope="module")
def expected(recipe: Recipe) -> list[dict[str, Any]]:
    return undisturbed_losses(recipe)


@pytest.fixture
def job(hosts: Hosts, recipe: Recipe, tmp_path: Path) -> Job:
    return Job(hosts, recipe, tmp_path)


class Job:
    """One recipe and a hostfile of both hosts."""

    def __init__(self, hosts: Hosts, recipe: Recipe, folder: Path) -> None:
        self.hosts, self.run_dir = hosts, folder / "run"
        self.recipe = write_recipe(replace(recipe, run_dir=str(self.run_dir)), folder / "r.yaml")
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in hosts.names))

    def start(self, launcher: str, **more: str) -> subprocess.Popen[str]:
        """From h1, as a user does who is logged in there."""
        command = [f"launch/{launcher}.sh", str(self.recipe), "--hostfile", str(self.hostfile)]
        changes = MPI_OF_HOSTS if launcher == "mpirun" else {}
        environment = cluster_environment(ENTRODROP_END_SECONDS="20", **changes, **more)
        return self.hosts.start("h1", command, environment=environment)

    def end(self, process: subprocess.Popen[str], *, seconds: float) -> tuple[int, str]:
        """Its exit code and all that it printed; nothing of it may be left on a host."""
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for name in self.up():  # whatever still runs on them holds the pipe
                self.hosts.power_off(name)
                self.hosts.boot(name)
            process.kill()
            raise AssertionError(
                f"still there after {seconds} s: {process.communicate()[0]}"
            ) from None
        deadline = time.monotonic() + 15
        while left := [
            line for name in self.up() for line in self.hosts.processes(name, "training")
        ]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
        return process.returncode, printed

    def up(self) -> list[str]:
        return [name for name in self.hosts.names if self.hosts.is_up(name)]


@pytest.mark.parametrize("launcher", ["deepspeed", "mpirun"])
def test_a_job_saves_when_asked_and_goes_on_exactly(job: Job, expected, launcher):
    """SIGUSR1, which schedulers send, reaches the launch script only."""
    started = job.start(launcher, PYTHON=sys.executable)
    wait_for_steps(job.run_dir, 15, of=started)
    job.hosts.signal(started, signal.SIGUSR1)
    code, printed = job.end(started, seconds=120)
    state, step = state_of(job.run_dir)
    assert (code, state) == (0, "stopped"), printed
    assert 15 <= step < NUM_STEPS
    assert "asking the run to save and end" in printed and "start again to resume" in printed
    assert (job.run_dir / "logs" / "rank-00001.log").exists()
    code, printed = job.end(job.start(launcher), seconds=240)
    assert code == 0, printed
    assert state_of(job.run_dir) == ("complete", NUM_STEPS)
    assert metrics(job.run_dir, "step") == expected


def test_a_cut_cable_ends_the_job_and_the_next_start_is_exact(job: Job, expected):
    """Nothing arrives and nothing is refused: only the watchdog can tell."""
    started = job.start("deepspeed")
    wait_for_steps(job.run_dir, 25, of=started)
    job.hosts.cut_cable("h2")
    cut_at = time.monotonic()
    try:
        code, printed = job.end(started, seconds=120)
    finally:
        job.hosts.mend_cable("h2")
    assert code != 0
    assert time.monotonic() - cut_at < 40
    assert "Failed: rank" in printed and "watchdog" in printed, printed
    code, printed = job.end(job.start("deepspeed"), seconds=240)
    assert code == 0, printed
    assert metrics(job.run_dir, "step") == expected


def test_a_lost_host_ends_the_job_and_the_next_start_is_exact(job: Job, expected):
    started = job.start("mpirun")
    wait_for_steps(job.run_dir, 25, of=started)
    job.hosts.power_off("h2")
    try:
        code, printed = job.end(started, seconds=120)
    finally:
        job.hosts.boot("h2")
    assert code != 0
    assert "The next start resumes from step" in printed, printed
    code, printed = job.end(job.start("mpirun"), seconds=240)
    assert code == 0, printed
    assert metrics(job.run_dir, "step") == expected
