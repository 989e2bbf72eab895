"""Trackers beside TensorBoard: each in a thread of its own, for which a run never waits."""

from __future__ import annotations

import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from training.metrics.tracker_clients import Client, TrackedRun, open_client

TENSORBOARD = "tensorboard"
_MOST_WAITING = 10_000
"""Rows that wait for a slow tracker before it is left."""
_SECONDS_TO_CLOSE = 30.0
"""Below the time after which a launch script ends a launcher that stays."""


def new_key() -> str:
    """Of a new run."""
    return uuid.uuid4().hex[:16]


def refuse_missing_clients(trackers: Collection[str]) -> None:
    """A tracker that is asked for and not installed is an error of the start.

    Raises:
        ValueError: naming the package.
    """
    for name in trackers:
        spec = None if name == TENSORBOARD else find_spec(name)
        # a folder of that name, as W&B leaves one, is found as a package without a file
        if name != TENSORBOARD and (spec is None or spec.origin is None):
            raise ValueError(
                f"trackers: {name} is not installed: {sys.executable} -m pip install {name}, or "
                "take it from trackers"
            )


@dataclass
class Trackers:
    """Those of a run; TensorBoard among them, which has a writer of its own."""

    names: Collection[str]
    run: TrackedRun | None = None
    """Needed for any but TensorBoard."""
    _threads: list[_Tracker] = field(default_factory=list)

    def begin(self) -> None:
        """Open each, in its own thread."""
        others = [name for name in self.names if name != TENSORBOARD]
        if others:
            assert self.run is not None
            self._threads = [_Tracker(name, self.run) for name in others]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points to curves, by tag."""
        for thread in self._threads:
            thread.put(lambda client: client.scalars(values, step))

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""
        for thread in self._threads:
            thread.put(lambda client: client.text(tag, text, step))

    def close(self, *, failed: bool) -> None:
        """Send what is left; a tracker that does not answer is left after half a minute."""
        deadline = time.monotonic() + _SECONDS_TO_CLOSE
        for thread in self._threads:
            thread.end(failed=failed)
        for thread in self._threads:
            thread.wait(deadline)
        self._threads = []


class _Tracker:
    """One thread with one client; its first error ends it, and is told once."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self._name, self._run = name, run
        self._calls: queue.Queue[Callable[[Client], None] | None] = queue.Queue(_MOST_WAITING)
        self._has_failed = False
        self._run_failed = False
        self._thread = threading.Thread(target=self._serve, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Client], None] | None) -> None:
        """None is the last."""
        if self._has_failed:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(f"does not answer, and {_MOST_WAITING:,} rows wait for it")

    def end(self, *, failed: bool) -> None:
        """After the last call, the run is marked as failed or finished."""
        self._run_failed = failed
        self.put(None)

    def wait(self, deadline: float) -> None:
        self._thread.join(0.0 if self._has_failed else max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._give_up(f"does not answer within {_SECONDS_TO_CLOSE:.0f} s of the run's end")

    def _serve(self) -> None:
        try:
            client = open_client(self._name, self._run)
            while (call := self._calls.get()) is not None and not self._has_failed:
                call(client)
            if not self._has_failed:
                client.close(failed=self._run_failed)
        except BaseException as error:  # libraries raise whatever they like, SystemExit among it
            message = " ".join(str(error).split())
            self._give_up(f"{type(error).__name__}: {message}"[:300])

    def _give_up(self, reason: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            print(
                f"trackers: {self._name}: {reason}; this run is not tracked there from here on, "
                "and trains on. metrics.jsonl has everything",
                file=sys.stderr,
                flush=True,
            )
