"""A signal on any rank, or a file STOP in the run folder, makes all ranks save and end together."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from training.ranks.dist import Layout

STOP_FILE = "STOP"
_REASONS = (None, "STOP file", "SIGUSR1", "SIGINT", "SIGTERM")
"""By code; of the reasons of several ranks the last one counts."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_KEY_PRESS_SECONDS = 1.0


class StopRequests:
    """Collects requests to stop on this rank; `agreed` shares them with all ranks.

    The handlers only set a flag, and only while this is open as a context. A step that has begun
    is finished: DeepSpeed's checkpoints do not contain accumulated gradients, so a save midway
    would lose finished micro-steps, and abandoning the step would lose as many. That is also why
    ranks agree once per step, at its end, and not after each micro-step.
    """

    def __init__(self, run_dir: Path, layout: Layout) -> None:
        self._stop_file, self._layout = run_dir / STOP_FILE, layout
        self._code = 0
        self._interrupted_at: float | None = None
        self._handlers_before: dict[signal.Signals, Any] = {}

    def agreed(self) -> str | None:
        """Why all ranks stop, the same on each of them; None to continue. A collective call."""
        code = self._code
        if code == 0 and self._layout.is_main and self._stop_file.exists():
            code = _REASONS.index("STOP file")
        codes = torch.tensor([code], device=self._layout.device)
        dist.all_reduce(codes, op=dist.ReduceOp.MAX)
        return _REASONS[int(codes)]

    def remove_stop_file(self) -> None:
        """Once it is honoured, so that the next start resumes."""
        if not self._layout.is_main:
            return
        try:
            self._stop_file.unlink(missing_ok=True)
        except OSError as error:
            message = f"{self._stop_file}: {error.strerror}; remove it, or the next start stops too"
            print(message, file=sys.stderr)

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._handlers_before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT":
            now = time.monotonic()
            # one Ctrl-C can come twice: from the terminal, and passed on by a launcher
            if self._interrupted_at is not None:
                if now - self._interrupted_at < _SAME_KEY_PRESS_SECONDS:
                    return
                signal.default_int_handler(number, frame)
            self._interrupted_at = now
        self._code = max(self._code, _REASONS.index(name))
        again = "; a second one ends it at once" if name == "SIGINT" else ""
        words = f"rank {self._layout.rank} got {name}: the run saves after this step{again}\n"
        # not print: a handler may interrupt one, and print is not reentrant
        with suppress(OSError):
            os.write(2, words.encode())
