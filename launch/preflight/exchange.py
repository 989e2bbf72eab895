"""Answers of all ranks through a store, with a time limit, so that a rank that hangs is named."""

from __future__ import annotations

import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_OWN_FOLDER = Path(__file__).resolve().parents[2]
_LATE_SECONDS = 15.0
"""Ranks do not start a check at the same moment."""


@dataclass(frozen=True)
class Answer:
    """The result of a check on one rank."""

    value: Any = None
    error: str | None = None
    hangs: bool = False


class Exchange:
    """Messages without collectives, since those may be what hangs."""

    def __init__(self, store: TCPStore, *, rank: int, world_size: int) -> None:
        """Use a store that only this class writes to."""
        self._store, self._rank, self._world_size = store, rank, world_size

    def gather(self, name: str, answer: Answer, *, seconds: float) -> list[Answer] | None:
        """All answers on rank 0, None elsewhere; a rank missing after `seconds` hangs."""
        self._put(f"{name}/{self._rank}", answer)
        if self._rank != 0:
            return None
        deadline = time.monotonic() + seconds + _LATE_SECONDS
        answers = []
        for rank in range(self._world_size):
            try:
                left = max(deadline - time.monotonic(), 0.1)
                self._store.wait([f"{name}/{rank}"], timedelta(seconds=left))
                answers.append(self._take(f"{name}/{rank}"))
            except dist.DistStoreError:
                answers.append(Answer(error="does not answer: it hangs or is gone", hangs=True))
        return answers

    def announce(self, name: str, value: Any, *, seconds: float) -> Any:
        """Rank 0's value on every rank.

        Raises:
            ValueError: when rank 0 does not answer for so long.
        """
        if self._rank == 0:
            self._put(name, value)
            return value
        try:
            self._store.wait([name], timedelta(seconds=seconds + 4 * _LATE_SECONDS))
            return self._take(name)
        except RuntimeError as error:  # a store that is gone is a DistNetworkError
            raise ValueError(f"rank 0, which holds the answers, is gone: {error}") from None

    def _put(self, key: str, value: Any) -> None:
        self._store.set(key, pickle.dumps(value).hex())

    def _take(self, key: str) -> Any:
        return pickle.loads(bytes.fromhex(self._store.get(key).decode()))

    def leave(self, *, seconds: float = 10.0) -> None:
        """Rank 0 goes last: the store ends with it."""
        self._put(f"left/{self._rank}", True)
        if self._rank == 0:
            deadline = time.monotonic() + seconds
            keys = [f"left/{rank}" for rank in range(self._world_size)]
            while not self._store.check(keys) and time.monotonic() < deadline:
                time.sleep(0.05)


def answer_within(call: Callable[[], Any], *, seconds: float) -> Answer:
    """What a call returns or raises; or where it is when the time is over.

    It then stays in its own thread: nothing can end a call that waits for a disk or for other
    processes.
    """
    box: list[Answer] = []

    def work() -> None:
        try:
            box.append(Answer(value=call()))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            box.append(Answer(error=f"{where}{error.strerror or error}"))
        except ValueError as error:
            box.append(Answer(error=" ".join(str(error).split())))
        except Exception as error:  # libraries have errors of many kinds
            where = _own_line(error.__traceback__)
            message = " ".join(str(error).split())
            box.append(Answer(error=f"{type(error).__name__}: {message}{where}"))

    thread = threading.Thread(target=work, name="preflight", daemon=True)
    thread.start()
    thread.join(seconds)
    if box:
        return box[0]
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame else []
    return Answer(error=f"no answer in {seconds:g} seconds{_last_own(stack)}", hangs=True)


def _own_line(trace: Any) -> str:
    return _last_own(traceback.extract_tb(trace))


def _last_own(stack: Any) -> str:
    """Where in this repository, the innermost line: " (launch/x.py, line 3, in f)"."""
    for frame in reversed(stack):
        path = Path(frame.filename)
        if path.is_relative_to(_OWN_FOLDER) and "site-packages" not in path.parts:
            where = path.relative_to(_OWN_FOLDER)
            return f" ({where}, line {frame.lineno}, in {frame.name})"
    return ""
