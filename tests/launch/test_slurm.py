"""Jobs on a real Slurm: they save, queue themselves again, survive faults, and go on exactly."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.launch.shared_runs import (
    NUM_STEPS,
    shared_recipe,
    state_of,
    undisturbed_losses,
    wait_for_steps,
    write_recipe,
)
from tests.launch.slurm_cluster import SlurmCluster, needs_slurm, wait_until
from tests.training.short_runs import metrics
from training.config.recipe import Recipe

pytestmark = [needs_slurm, pytest.mark.cluster, pytest.mark.slow]
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as up:
        yield up


@pytest.fixture(scope="module")
def recipe(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return shared_recipe(small_corpus, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture(scope="module")
def expected(recipe: Recipe) -> list[dict[str, Any]]:
    return undisturbed_losses(recipe)


@pytest.fixture
def submit(
    cluster: SlurmCluster, recipe: Recipe, tmp_path: Path
) -> Iterator[Callable[..., TrainJob]]:
    jobs: list[TrainJob] = []

    def start(*options: str, **environment: str) -> TrainJob:
        jobs.append(TrainJob(cluster, recipe, tmp_path, options, environment))
        return jobs[-1]

    yield start
    for job in jobs:  # one that failed must not keep the nodes from the next
        cluster.run("scancel", job.id)
    cluster.wait_for_nodes(seconds=120)


class TrainJob:
    """The recipe as a job of two nodes, submitted."""

    def __init__(
        self,
        cluster: SlurmCluster,
        recipe: Recipe,
        folder: Path,
        options: tuple[str, ...],
        environment: dict[str, str],
    ) -> None:
        self.cluster, self.run_dir = cluster, folder / "run"
        self._output = folder / "job.out"
        path = write_recipe(replace(recipe, run_dir=str(self.run_dir)), folder / "r.yaml")
        self._pattern = f"training train {path}"
        self.id = cluster.submit(
            "train.sbatch",
            (*TWO_NODES, f"--output={self._output}", *options),
            str(path),
            environment=environment,
        )

    def printed(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def ranks(self) -> list[int]:
        return self.cluster.processes(self._pattern)

    def wait_for_steps(self, number: int) -> None:
        try:
            wait_for_steps(self.run_dir, number, seconds=240)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.printed()}") from None

    def wait_for_restart(self, number: int, *, seconds: float = 120) -> None:
        """Until the job has been queued again so many times."""
        wait_until(
            lambda: int(self.cluster.job(self.id)["Restarts"]) >= number,
            seconds=seconds,
            what=f"restart {number}",
            told=self.printed,
        )

    def check_complete(self, expected: list[dict[str, Any]], *, restarts: int) -> None:
        job = self.cluster.wait_for(self.id, "COMPLETED", "FAILED", "CANCELLED", seconds=600)
        assert (job["JobState"], job["Restarts"]) == ("COMPLETED", str(restarts)), self.printed()
        assert state_of(self.run_dir) == ("complete", NUM_STEPS)
        assert metrics(self.run_dir, "step") == expected
        assert not (self.run_dir / "STOP").exists()


def preempt(cluster: SlurmCluster) -> str:
    """A job that wants both nodes at once, for a second."""
    options = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    return cluster.run("sbatch", "--parsable", *options, "--wrap", "sleep 1")


def test_before_its_time_limit_a_job_saves_queues_itself_and_goes_on_exactly(
    submit, cluster, expected
):
    """USR1 to the batch script alone is what --signal=B:USR1@300 sends."""
    job = submit(PYTHON=sys.executable)
    job.wait_for_steps(15)
    ranks = job.ranks()
    assert len(ranks) == 2
    # mpi4py would abort under a plain srun, where there is no PMI
    assert not any("libmpi" in Path(f"/proc/{pid}/maps").read_text() for pid in ranks)
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    job.wait_for_restart(1)
    assert state_of(job.run_dir)[0] == "stopped"
    job.check_complete(expected, restarts=1)
    assert (job.run_dir / "logs" / "rank-00001.log").exists()


def test_a_preempted_job_saves_and_goes_on_exactly(submit, cluster, expected):
    """Within the grace time Slurm tells the processes only, and not the script."""
    job = submit("--partition=main")
    job.wait_for_steps(15)
    urgent = preempt(cluster)
    cluster.wait_for(urgent, "COMPLETED")
    state, step = state_of(job.run_dir)
    assert (state, step >= 15) == ("stopped", True), job.printed()
    job.check_complete(expected, restarts=1)


def test_a_lost_node_frees_the_other_and_back_again_the_job_goes_on_exactly(
    submit, cluster, expected
):
    job = submit()
    job.wait_for_steps(15)
    cluster.power_off("h2")
    try:
        job.wait_for_restart(1)
        wait_until(lambda: cluster.node_states()["h1"] == "idle", seconds=60, what="h1 free again")
        assert not job.ranks()
    finally:
        cluster.boot("h2")
    job.check_complete(expected, restarts=1)


def test_a_killed_rank_ends_the_others_and_the_job_goes_on_exactly(submit, cluster, expected):
    job = submit()
    job.wait_for_steps(15)
    ranks = job.ranks()
    os.kill(ranks[0], signal.SIGKILL)
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), seconds=30, what="end"
    )
    job.check_complete(expected, restarts=1)


def test_a_cancelled_job_saves_what_it_can_and_stays_cancelled(submit, cluster):
    job = submit()
    job.wait_for_steps(15)
    cluster.run("scancel", job.id)
    cluster.wait_for(job.id, "CANCELLED", seconds=30)
    cluster.wait_for_nodes()
    assert cluster.job(job.id)["JobState"] == "CANCELLED"
    assert state_of(job.run_dir)[0] == "stopped"
    assert "Slurm itself ends this start" in job.printed()
