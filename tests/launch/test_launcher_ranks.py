"""What a process learns of its place from the environment that a launcher leaves it."""

from __future__ import annotations

import os

import pytest

from training import launcher_ranks
from training.launcher_ranks import set_rank_variables


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of this process, empty, to be filled by the test."""
    variables: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", variables)
    return variables


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_LOCAL_SIZE", "LOCAL_SIZE"])
def test_processes_of_a_host_share_its_cores(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every one of eight would start a thread on each of all cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    environment.update({name: "8", "RANK": "0"})
    set_rank_variables()
    assert environment["OMP_NUM_THREADS"] == "12"
    environment["OMP_NUM_THREADS"] = "3"
    set_rank_variables()
    assert environment["OMP_NUM_THREADS"] == "3"


SRUN_TASK = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "MASTER_ADDR": "node-1",
    "MASTER_PORT": "20000",
}


def test_a_task_of_srun_is_no_rank_of_mpirun_where_slurm_speaks_pmi2(
    environment: dict[str, str],
) -> None:
    """Clusters with MpiDefault=pmi2 set PMI_SIZE, and mpi4py aborts a process of plain srun."""
    environment.update(SRUN_TASK | {"PMI_SIZE": "4", "PMI_RANK": "3"})
    set_rank_variables()
    assert [environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "4", "1"]


@pytest.mark.parametrize(
    "mpirun", [{"OMPI_COMM_WORLD_SIZE": "8"}, {"PMI_SIZE": "8", "MPI_LOCALNRANKS": "2"}]
)
def test_ranks_of_an_mpirun_inside_a_slurm_job_ask_mpi(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, mpirun: dict[str, str]
) -> None:
    """Its daemons are tasks of srun, whose numbers the ranks inherit."""
    asked: list[int] = []
    monkeypatch.setattr(launcher_ranks, "_ask_mpi", asked.append)
    environment.update(SRUN_TASK | mpirun)
    set_rank_variables()
    assert asked == [8]
