"""One way to fan work out: processes on this machine, MPI ranks under mpirun or srun."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar, cast

Task = TypeVar("Task")
Result = TypeVar("Result")

# Set by Open MPI's mpirun, by MPICH's and Intel's, and by `srun --mpi=pmix`. A plain `srun`
# sets none of them, and there importing mpi4py would abort the process.
_MPI_MARKS = ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK")


def num_usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def launched_by_mpi() -> bool:
    return any(mark in os.environ for mark in _MPI_MARKS)


@contextmanager
def open_executor(num_workers: int) -> Iterator[tuple[Executor, int]]:
    """Workers with one core each, and how many came; a single one is this process itself."""
    if launched_by_mpi():
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor

        with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
            # None only on other ranks, which never come here.
            yield cast(Executor, executor), MPI.COMM_WORLD.size
    elif num_workers == 1:
        with _one_tokenizer_thread():
            yield _InThisProcess(), 1
    else:
        # Spawned, not forked: tokenizers holds threads, which a fork would tear.
        pool = ProcessPoolExecutor(
            num_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_process,
        )
        try:
            yield pool, num_workers
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _InThisProcess(Executor):
    """Runs each task when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def serve_as_mpi_worker() -> bool:
    """On every rank but the first: work until the first rank is done. True if that was so."""
    if not launched_by_mpi():
        return False
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    if MPI.COMM_WORLD.rank == 0:
        return False
    with _one_tokenizer_thread(), MPICommExecutor(MPI.COMM_WORLD, root=0):
        pass
    return True


def abort_mpi(exit_code: int) -> None:
    """Take the waiting ranks down with a first rank that failed before it gave them work."""
    if launched_by_mpi():
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(exit_code)


def map_in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, executor: Executor, window: int
) -> Generator[Result, None, None]:
    """Results in the order of the tasks, with at most `window` of them in memory."""
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(executor.submit(work, task))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died, most likely for want of memory; use fewer --workers"
        ) from None


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
    """Workers of a killed build would wait for its next batch for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
