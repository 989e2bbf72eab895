"""A stream whose next step is built by a thread while the current one trains."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from training.data.stream import MicroBatch, SampleStream

_LAST_SECONDS = 10.0


class _Coming:
    """The micro-batches of one step, on the host. Its thread builds them and ends."""

    def __init__(self, stream: SampleStream, step: int) -> None:
        self.step = step
        self._stream = stream
        self._batches: list[MicroBatch] = []
        self._error: BaseException | None = None
        # daemon: a disk that hangs keeps no process from ending
        self.thread = threading.Thread(target=self._build, name="next step", daemon=True)
        self.thread.start()

    def _build(self) -> None:
        try:
            self._batches = self._stream.on_host(self.step)
        except BaseException as error:  # of the step that it belongs to, not of the one before
            self._error = error

    def take(self) -> list[MicroBatch]:
        """Wait for them; raises what building them raised."""
        self.thread.join()
        if self._error is not None:
            raise self._error
        return self._batches


@dataclass(frozen=True)
class PrefetchingStream(SampleStream):
    """The same batches in the same order; another step than the next is built when it is asked."""

    _coming: list[_Coming] = field(default_factory=list, compare=False, repr=False)
    """None or one."""

    def step(self, step: int) -> list[MicroBatch]:
        """As of a stream without a thread; on CUDA copied from pinned memory, without waiting."""
        if not self._coming or self._coming[0].step != step:
            self._begin(step)
        batches = [batch.to(self.layout.device) for batch in self._coming[0].take()]
        self._coming.clear()
        if step + 1 < self.num_steps:
            self._begin(step + 1)
        return batches

    def _begin(self, step: int) -> None:
        """Behind the thread of another step, which a rollback leaves unused."""
        for other in self._coming:
            other.thread.join()
        self._coming[:] = [_Coming(self, step)]


@contextmanager
def prefetching(stream: SampleStream) -> Iterator[PrefetchingStream]:
    """The stream with a thread, which has ended when the context is left, whatever for."""
    values = {each.name: getattr(stream, each.name) for each in fields(SampleStream)}
    ahead = PrefetchingStream(**values)
    try:
        yield ahead
    finally:
        for coming in ahead._coming:
            coming.thread.join(_LAST_SECONDS)
