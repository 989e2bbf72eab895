"""Worker processes whose results come back through memory that they share with this one.

Through the pipe of a `ProcessPoolExecutor` each result is copied several times, 64 KiB at a time.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, get_context, parent_process, reduction, resource_tracker
from types import FrameType
from typing import Any

import numpy as np

from common.exits import without_ctrl_c

_PRELOADED = "data_prep.encode"
_PLACE_BYTES = 3 << 20
"""Of shared memory for one result; a larger one goes through the pipe."""
_shared: np.ndarray | None = None
"""[bytes] uint8, in a worker."""


@contextmanager
def open_processes(num_workers: int, *, num_tasks: int) -> Iterator[Executor]:
    """Start them, for `num_tasks` at a time; they end with this process, however it ends."""
    # Forked from a server that has imported what they need, not from here: threads of tokenizers
    # do not survive a fork. It imports while this process goes on, up to the first task.
    context = get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    resource_tracker.ensure_running()  # before, since it unblocks signals
    with without_ctrl_c():  # the server would print where it was
        _start_server()
    with _shared_memory(num_tasks * _PLACE_BYTES) as memory:
        pool = _Processes(
            num_workers, mp_context=context, initializer=_start_process, initargs=(memory,)
        )
        try:
            yield _SharingExecutor(pool, shared=memory.mapped())
        finally:
            # A second Ctrl-C here would have Python take a thread that it joins for ended, and
            # end its queue too soon: workers would never hear of the end, and it waits for them.
            with without_ctrl_c():
                pool.shutdown(wait=True, cancel_futures=True)


def _start_server() -> None:
    try:
        forkserver.ensure_running()
    except OSError as error:
        if "AF_UNIX path too long" not in str(error):
            raise
        raise ValueError(
            f"TMPDIR={tempfile.gettempdir()}: too long for the name of a socket in it; set TMPDIR "
            "to a folder with a shorter name, such as /tmp, or use --workers 1"
        ) from None


@dataclass(frozen=True)
class _Memory:
    """What this process and those that it starts share; no file, so neither a small /dev/shm nor a
    full disk is in its way.
    """

    file: int
    num_bytes: int

    def __reduce__(self) -> tuple[object, ...]:
        return _inherited, (reduction.DupFd(self.file), self.num_bytes)

    def mapped(self) -> np.ndarray:
        """[bytes] uint8; it takes memory where it has been written."""
        return np.frombuffer(mmap.mmap(self.file, self.num_bytes), dtype=np.uint8)


def _inherited(file: Any, num_bytes: int) -> _Memory:
    return _Memory(file.detach(), num_bytes)


@contextmanager
def _shared_memory(num_bytes: int) -> Iterator[_Memory]:
    file = os.memfd_create("results")
    try:
        os.ftruncate(file, num_bytes)
        yield _Memory(file, num_bytes)
    finally:
        os.close(file)


class _Processes(ProcessPoolExecutor):
    """Starts all processes before the thread that watches them, as Python does where it forks.

    Where one dies while others start, that thread misses the others, and nothing ends any more.
    """

    def _start_executor_manager_thread(self) -> None:
        if self._executor_manager_thread is None:
            for _ in range(len(self._processes), self._max_workers):
                self._spawn_process()
        super()._start_executor_manager_thread()


class _SharingExecutor(Executor):
    """Gives each task a place in shared memory for the arrays of its result."""

    def __init__(self, pool: ProcessPoolExecutor, *, shared: np.ndarray) -> None:
        self._pool = pool
        self._shared = shared
        self._free = deque(range(0, len(shared), _PLACE_BYTES))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            place = self._free.pop()
        except IndexError:
            place = None
        task = partial(fn, *args, **kwargs)
        received: Future[Any] = Future()
        try:
            sent = self._pool.submit(_run, task, place)
        except (EOFError, ConnectionError):
            raise BrokenExecutor("the server that starts processes has died") from None
        sent.add_done_callback(partial(self._receive, place=place, received=received))
        return received

    def _receive(self, sent: Future[Any], *, place: int | None, received: Future[Any]) -> None:
        try:
            result = self._taken(sent, place=place)
        except BaseException as error:
            received.set_exception(error)
        else:
            received.set_result(result)

    def _taken(self, sent: Future[Any], *, place: int | None) -> Any:
        """A result, copied out of its place, which the next task may take."""
        try:
            result = sent.result()
            if isinstance(result, _Placed):
                assert place is not None
                return result.taken_from(self._shared, place=place)
            return result
        finally:
            if place is not None:
                self._free.append(place)


@dataclass(frozen=True)
class _Placed:
    """A result without the contents of its arrays, which lie one after another in its place."""

    pickled: bytes
    sizes: tuple[int, ...]

    def taken_from(self, shared: np.ndarray, *, place: int) -> Any:
        buffers = []
        for size in self.sizes:
            buffers.append(bytearray(shared[place : place + size]))
            place += size
        return pickle.loads(self.pickled, buffers=buffers)


class _CtrlC:
    """Raised in a worker within a task alone; otherwise by the next one.

    It would leave half a message in the pipe, for which the build would wait forever. To block it
    is not enough: threads that a library starts within a task would take it.
    """

    def __init__(self) -> None:
        self._is_in_task = False
        self._has_come = False

    def note(self, number: int, frame: FrameType | None) -> None:
        if self._is_in_task:
            self._is_in_task = False
            raise KeyboardInterrupt
        self._has_come = True

    @contextmanager
    def taken(self) -> Iterator[None]:
        self._is_in_task = True
        try:
            if self._has_come:
                self._has_come = False
                raise KeyboardInterrupt
            yield
        finally:
            self._is_in_task = False


_CTRL_C = _CtrlC()


def _run(task: Callable[[], Any], place: int | None) -> Any:
    with _CTRL_C.taken():
        result = task()
    if place is None or _shared is None:
        return result
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    contents = [buffer.raw() for buffer in buffers]
    sizes = tuple(content.nbytes for content in contents)
    if sum(sizes) > _PLACE_BYTES:
        return result
    for content, size in zip(contents, sizes, strict=True):
        _shared[place : place + size] = content
        place += size
    return _Placed(pickled, sizes)


def _start_process(memory: _Memory) -> None:
    global _shared
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _CTRL_C.note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    _shared = memory.mapped()
    os.close(memory.file)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Otherwise workers of a killed build would wait forever for its next task."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
