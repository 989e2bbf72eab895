"""What a process learns of its place from the environment that a launcher leaves it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mpi import hide_mpi
from tests.training.short_runs import short_recipe
from tests.warm_python import warm_python
from training.config.load import dump_recipe
from training.ranks import launcher_env
from training.ranks.launcher_env import set_rank_variables


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """The environment of this process, empty, to be filled by the test."""
    variables: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", variables)
        yield variables


TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "20000",
}


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_LOCAL_SIZE", "LOCAL_SIZE"])
def test_processes_of_a_host_share_its_cores(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every one of eight would start a thread on each of all cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    environment.update(TORCHRUN | {name: "8"})
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
    monkeypatch.setattr(launcher_env, "_ask_mpi", asked.append)
    environment.update(SRUN_TASK | mpirun)
    set_rank_variables()
    assert asked == [8]


@pytest.mark.parametrize("lacks", ["library", "mpi4py"])
def test_ranks_of_an_mpirun_whose_mpi_cannot_be_loaded_are_told_how_to_get_one(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    hide_mpi(monkeypatch, lacks=lacks)
    environment["OMPI_COMM_WORLD_SIZE"] = "2"
    with pytest.raises(ValueError) as caught:
        set_rank_variables()
    told = str(caught.value)
    assert told.startswith("mpirun has started 2 processes, but Python cannot load its MPI")
    assert {"library": "(cannot load MPI library)", "mpi4py": "mpi4py"}[lacks] in told
    assert "openmpi-bin" in told and f"{sys.executable} -m pip install" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is set to 4, but not RANK and LOCAL_RANK and MASTER_"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is set to '', which is not a number"),
        ({"OMPI_COMM_WORLD_SIZE": "two"}, "OMPI_COMM_WORLD_SIZE is set to 'two', which is not a"),
        ({"SLURM_STEP_NUM_TASKS": "1(x2)"}, "SLURM_STEP_NUM_TASKS is set to '1(x2)', which is not"),
        (
            TORCHRUN | {"RANK": "8"},
            "RANK is set to 8, but WORLD_SIZE to 8: ranks count from 0 to 7",
        ),
        (TORCHRUN | {"MASTER_PORT": "any"}, "MASTER_PORT is set to 'any', which is not a number"),
    ],
)
def test_what_an_earlier_job_has_left_in_the_shell_is_refused_by_its_name(
    environment: dict[str, str], left: dict[str, str], told: str
) -> None:
    environment.update(left)
    with pytest.raises(ValueError) as caught:
        set_rank_variables()
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    "left",
    [
        {"PMIX_RANK": "0", "PMIX_NAMESPACE": "job", "PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMI_SIZE": "1"},
        {"WORLD_SIZE": "1", "LOCAL_RANK": "3", "MASTER_ADDR": "gone", "MASTER_PORT": "29500"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_what_an_earlier_job_has_left_is_no_other_process(left: dict[str, str]) -> None:
    """A start without a launcher is one process, whatever port and rank a shell still holds."""
    program = (
        "from training.ranks.dist import init_layout\n"
        "import torch.distributed as dist\n"
        "layout = init_layout(sp_size=1)\n"
        "print(layout.rank, layout.world_size, dist.get_world_size(), layout.device)\n"
    )
    started = subprocess.run(
        [warm_python(), "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **left},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert started.stdout == "0 1 1 cpu\n"


def test_a_port_that_is_taken_matters_to_ranks_alone_and_is_one_sentence(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    alone = {"train__sequence_parallel_size": 1}
    recipe.write_text(dump_recipe(short_recipe(tmp_path / "absent", tmp_path / "run", **alone)))
    with socket.create_server(("", 0)) as holder:
        port = str(holder.getsockname()[1])
        ours = {name: value for name, value in TORCHRUN.items() if name != "WORLD_SIZE"}
        told = {}
        for name, left in (("alone", {}), ("rank", ours | {"WORLD_SIZE": "1"})):
            started = subprocess.run(
                [warm_python(), "-m", "training", "train", str(recipe)],
                cwd=Path(__file__).parents[2],
                env={**os.environ, **left, "MASTER_PORT": port},
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert started.returncode == 2
            (told[name],) = started.stderr.splitlines()
    assert told["alone"].startswith(f"error: {tmp_path / 'absent'}")  # it went on to the corpus
    assert f"port: {port}" in told["rank"]
    assert told["rank"].endswith("; is MASTER_ADDR right, and MASTER_PORT free?")


@pytest.mark.parametrize("missing", [["LOCAL_RANK"], ["MASTER_ADDR", "MASTER_PORT"]])
def test_a_rank_without_its_place_is_refused(
    environment: dict[str, str], missing: list[str]
) -> None:
    """DeepSpeed would ask MPI, by which every such process may be a run of its own."""
    environment.update({name: value for name, value in TORCHRUN.items() if name not in missing})
    with pytest.raises(ValueError, match=f"RANK is set to 0, but not {' and '.join(missing)}: "):
        set_rank_variables()
