"""Distributes work over processes on this machine, or MPI ranks under mpirun or srun."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from data_prep.mpi import launched_by_mpi, load_mpi

Task = TypeVar("Task")
Result = TypeVar("Result")

# One running, one queued, and one done before those that precede it: results are in order, and
# with two, a worker had to wait for a slower one now and then.
_TASKS_A_WORKER = 3


def num_usable_cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, eq=False)
class _Team:
    executor: Executor
    num_workers: int


class WorkerPool:
    """Workers with one core each; each task goes to the least busy one."""

    def __init__(self, teams: list[_Team]) -> None:
        self._teams = teams
        self._warming: threading.Thread | None = None
        self.num_workers = sum(team.num_workers for team in teams)

    def warm_up(self, prepare: Callable[[], object]) -> None:
        """Let every other process start, import and prepare while this one does other work.

        An error, in `prepare` or of processes that do not start, is met again by the first task.
        """

        others = [team for team in self._teams if not isinstance(team.executor, _InThisProcess)]

        def submit_to_all() -> None:
            with suppress(RuntimeError, OSError):  # no process, no thread, no file left
                for team in others:
                    for _ in range(team.num_workers):
                        team.executor.submit(_do, prepare)

        # In a thread: the first one waits until processes have started.
        self._warming = threading.Thread(target=submit_to_all, daemon=True)
        self._warming.start()

    def close(self) -> None:
        """Before executors shut down, which would refuse what is submitted late."""
        if self._warming is not None:
            self._warming.join()

    def map_in_order(
        self, work: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Generator[Result, None, None]:
        """Results in task order, with at most three per worker in memory."""
        waiting: deque[tuple[Future[Result], _Team]] = deque()
        try:
            for task in tasks:
                team = self._least_busy([team for future, team in waiting if not future.done()])
                waiting.append((team.executor.submit(work, task), team))
                if len(waiting) >= _TASKS_A_WORKER * self.num_workers:
                    yield waiting.popleft()[0].result()
            while waiting:
                yield waiting.popleft()[0].result()
        except BrokenExecutor:
            raise ValueError(
                "a worker process died, most likely out of memory. Finished work is kept: "
                "run the same command again with fewer --workers"
            ) from None

    def _least_busy(self, busy: list[_Team]) -> _Team:
        return min(self._teams, key=lambda team: busy.count(team) / team.num_workers)


def _do(prepare: Callable[[], object]) -> None:
    """Without its result, such as a whole tokenizer, which would be sent back for nothing."""
    prepare()


@contextmanager
def open_pool(num_workers: int) -> Iterator[WorkerPool]:
    """`num_workers` processes here, or one per MPI rank; this process is one of them."""
    if launched_by_mpi():
        with _open_mpi() as teams, closing(WorkerPool(teams)) as pool:
            yield pool
    elif num_workers == 1:
        with _one_tokenizer_thread(), closing(WorkerPool([_Team(_InThisProcess(), 1)])) as pool:
            yield pool
    else:
        from data_prep.process_pool import open_processes

        with (
            open_processes(num_workers, num_tasks=_TASKS_A_WORKER * num_workers) as executor,
            closing(WorkerPool([_Team(executor, num_workers)])) as pool,
        ):
            yield pool


@contextmanager
def _open_mpi() -> Iterator[list[_Team]]:
    """The other ranks, and a second process here, so that the first rank's core works too."""
    mpi = load_mpi()
    from mpi4py.futures import MPICommExecutor

    from data_prep.process_pool import open_processes

    num_ranks = mpi.COMM_WORLD.size
    with open_processes(1, num_tasks=_TASKS_A_WORKER) as process:
        here = _Team(process, 1)
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
    mpi = load_mpi()
    from mpi4py.futures import MPICommExecutor

    with _one_tokenizer_thread(), MPICommExecutor(mpi.COMM_WORLD, root=0):
        pass


@contextmanager
def _one_tokenizer_thread() -> Iterator[None]:
    """One worker is one core; tokenizers would otherwise start a thread per core in each."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
