"""Work over MPI ranks where MPI cannot be loaded, or is another than that of mpirun."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from data_prep.executor import WorkerPool, _Team
from tests.mpi import hide_mpi

Cli = Callable[..., tuple[int, str, str]]
# what they set: number of processes, number of this one, and more
LAUNCHERS = {
    "open_mpi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "hydra": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
    "srun_pmix": ("SLURM_STEP_NUM_TASKS", "PMIX_RANK"),
}


@pytest.fixture
def build_under_mpi(
    run_cli: Cli, tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """A build as a rank of two: its exit code and what it printed as an error."""
    (tmp_path / "docs.jsonl").write_text('{"text": "a"}\n')

    def run(
        *, rank: int, source: str = "docs.jsonl", launcher: str = "open_mpi"
    ) -> tuple[int, str]:
        size, number, *marks = LAUNCHERS[launcher]
        for name, value in ((size, "2"), (number, str(rank)), *((mark, "1") for mark in marks)):
            monkeypatch.setenv(name, value)
        command = ["build", "--input", tmp_path / source, "--tokenizer", bpe_folder]
        code, _, told = run_cli(*command, "--out", tmp_path / "corpus")
        return code, told

    return run


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("lacks", ["library", "mpi4py"])
def test_a_rank_that_cannot_load_mpi_ends_with_one_sentence(
    build_under_mpi: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    lacks: str,
    rank: int,
) -> None:
    hide_mpi(monkeypatch, lacks=lacks)
    code, told = build_under_mpi(rank=rank)
    assert code == 2
    (sentence,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert told.endswith(f"{sentence}\n")
    assert "belongs to an MPI job, but Python cannot load MPI" in sentence
    assert "openmpi-bin" in sentence and f"{sys.executable} -m pip install" in sentence
    assert {"library": "cannot load MPI library)", "mpi4py": "mpi4py"}[lacks] in sentence


def test_another_mistake_is_told_as_it_is_where_mpi_cannot_be_loaded(
    build_under_mpi: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking the other ranks down must not fail in its place."""
    hide_mpi(monkeypatch)
    code, told = build_under_mpi(rank=0, source="nowhere.jsonl")
    assert code == 2
    assert "nowhere.jsonl" in told.splitlines()[-1]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_library_that_is_not_the_one_of_mpirun_is_refused(
    build_under_mpi: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """Each rank would take itself for the only one: one core works where many were asked for."""
    hide_mpi(monkeypatch)
    stand_in = ModuleType("mpi4py")
    alone = SimpleNamespace(size=1, Abort=None)
    stand_in.MPI = SimpleNamespace(  # type: ignore[attr-defined]
        COMM_WORLD=alone, Get_library_version=lambda: "Open MPI v5\nand more"
    )
    monkeypatch.setitem(sys.modules, "mpi4py", stand_in)
    for rank in (0, 1):
        code, told = build_under_mpi(rank=rank, launcher=launcher)
        assert code == 2
        name = "srun" if launcher.startswith("srun") else "mpirun"
        assert f"{name} has started 2 processes, but mpi4py sees 1" in told.splitlines()[-1]


def test_mpirun_ends_all_ranks_when_they_cannot_load_mpi(
    tmp_path: Path,
    bpe_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_mpi: Callable[..., subprocess.Popen[str]],
) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", str(tmp_path / "libmpi.so"))
    (tmp_path / "docs.jsonl").write_text('{"text": "a"}\n')
    command = ["build", "--input", tmp_path / "docs.jsonl", "--tokenizer", bpe_folder]
    process = start_mpi(2, "-m", "data_prep", *command, "--out", tmp_path / "corpus")
    try:
        assert process.wait(timeout=60) == 2
    finally:
        process.kill()


@pytest.mark.filterwarnings("error")
def test_what_prepares_workers_sends_nothing_back_and_tells_no_error_of_its_own() -> None:
    """A tokenizer is large; and the first task meets the same error."""
    done: list[object] = []

    class Team(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if done:
                raise BrokenExecutor
            done.append(fn(*args, **kwargs))
            return Future()

    with closing(WorkerPool([_Team(Team(), 2)])) as pool:
        pool.warm_up(lambda: "a tokenizer")
    assert done == [None]


def test_a_worker_goes_on_while_a_slower_one_holds_back_results() -> None:
    """Tasks differ in length, and a second rank was idle for a tenth of a build."""
    others_have_three = threading.Event()

    def tasks() -> Iterator[int]:
        yield from range(5)
        others_have_three.set()
        yield 5

    def work(task: int) -> bool:
        return task != 0 or others_have_three.wait(timeout=10)

    with (
        ThreadPoolExecutor(1) as slow,
        ThreadPoolExecutor(1) as other,
        closing(WorkerPool([_Team(slow, 1), _Team(other, 1)])) as pool,
    ):
        assert all(pool.map_in_order(work, tasks()))
