"""Worker processes whose results come back through memory that they share with this one.

Through the pipe of a `ProcessPoolExecutor` each byte of a result is copied ten times, in pieces.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, get_context, parent_process
from typing import Any

import numpy as np

_PRELOADED = "data_prep.encode"
_PLACE_BYTES = 3 << 20
"""Of shared memory for one result; a larger one goes through the pipe."""
_PLACES_A_WORKER = 2
_shared: np.ndarray | None = None
"""[bytes] uint8, in a worker."""


@contextmanager
def open_processes(num_workers: int) -> Iterator[Executor]:
    """Start them; they end with this process, however it ends."""
    # Forked from a server that has imported what they need, not from here: threads of tokenizers
    # do not survive a fork. It imports while this process goes on, up to the first task.
    context = get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    forkserver.ensure_running()
    memory = context.RawArray("B", num_workers * _PLACES_A_WORKER * _PLACE_BYTES)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_process, initargs=(memory,)
    )
    try:
        yield _SharingExecutor(pool, shared=np.frombuffer(memory, dtype=np.uint8))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _SharingExecutor(Executor):
    """Gives each task a place in shared memory for the arrays of its result."""

    def __init__(self, pool: ProcessPoolExecutor, *, shared: np.ndarray) -> None:
        self._pool = pool
        self._shared = shared
        self._free = deque(range(0, len(shared), _PLACE_BYTES))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        place = self._free.pop() if self._free else None
        task = partial(fn, *args, **kwargs)
        received: Future[Any] = Future()
        sent = self._pool.submit(_run, task, place)
        sent.add_done_callback(partial(self._receive, place=place, received=received))
        return received

    def _receive(self, sent: Future[Any], *, place: int | None, received: Future[Any]) -> None:
        """Copy a result out of its place, which the next task may take."""
        if sent.cancelled():
            received.cancel()
        elif error := sent.exception():
            received.set_exception(error)
        else:
            result = sent.result()
            if isinstance(result, _Placed):
                assert place is not None
                result = result.taken_from(self._shared, place=place)
            received.set_result(result)
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


def _run(task: Callable[[], Any], place: int | None) -> Any:
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


def _start_process(memory: Any) -> None:
    global _shared
    _shared = np.frombuffer(memory, dtype=np.uint8)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Otherwise workers of a killed build would wait forever for its next task."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
