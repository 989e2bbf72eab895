"""Ends a process that makes no progress, and reports which rank hangs, where, and in which line."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from training.ranks.run_state import note_failure

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: worth a retry."""
_HEAD_START_FRAC = 0.1
"""Extra time for ranks that wait for others, so that the one that hangs reports first and the
launcher does not end it before."""
_MAX_TICK_SECONDS = 1.0
_LAST_WORDS_SECONDS = 10.0


class _Phase(NamedTuple):
    name: str
    step: int
    alone: bool
    limit_seconds: float


class Watchdog:
    """A thread that ends the process when `enter` is not called for too long.

    Every rank watches itself and needs no communication for it, since communication is what may
    hang. A rank that another one keeps waiting runs out of time as well: a cut network and a
    stopped process are noticed by the ranks that still run.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        rank: int,
        seconds: float | None,
        slow_seconds: float,
        record_collectives: int = 0,
    ) -> None:
        """Watch once it is entered as a context.

        Args:
            run_dir: gets `hang-rank<rank>.txt`, and `collectives-rank<rank>.pickle`.
            seconds: longest time in a phase; None watches nothing.
            slow_seconds: the same in the phases that are entered as slow.
            record_collectives: whether torch records some (`record_collectives`).
        """
        self._run_dir, self._rank = run_dir, rank
        self._seconds, self._slow_seconds = seconds, slow_seconds
        self._has_recorder = record_collectives > 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._phase = _Phase("start", 0, False, 0.0)

    @classmethod
    def off(cls) -> Watchdog:
        """One that watches nothing, for engines outside a run."""
        return cls(Path(), rank=0, seconds=None, slow_seconds=1.0)

    def enter(
        self, name: str, *, step: int | None = None, alone: bool = False, slow: bool = False
    ) -> None:
        """Set what this rank does from now on; restarts the clock.

        Args:
            step: optimizer steps completed; unchanged when not given.
            alone: nothing in this phase waits for another rank.
            slow: a phase that may take long, such as a save.
        """
        limit = (self._slow_seconds if slow else self._seconds) or 0.0
        limit *= 1.0 if alone else 1.0 + _HEAD_START_FRAC
        self._phase = _Phase(name, self._phase.step if step is None else step, alone, limit)

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self.enter("start", slow=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        shortest = min(self._seconds or 1.0, self._slow_seconds)
        tick_seconds = min(_MAX_TICK_SECONDS, shortest / 20)
        watched, quiet_seconds, last = self._phase, 0.0, time.monotonic()
        while not self._ended.wait(tick_seconds):
            now = time.monotonic()
            # no more than two ticks: time in which the whole job was suspended does not count
            quiet_seconds += min(now - last, 2 * tick_seconds)
            last = now
            if self._phase is not watched:
                watched, quiet_seconds = self._phase, 0.0
            elif quiet_seconds > watched.limit_seconds:
                self._end_process(watched, quiet_seconds)

    def _end_process(self, phase: _Phase, quiet_seconds: float) -> None:
        # a file system that hangs must not keep the process from ending
        end = threading.Timer(_LAST_WORDS_SECONDS, os._exit, (EXIT_CODE,))
        end.daemon = True
        end.start()
        sentence = describe_hang(
            self._rank, phase.name, step=phase.step, seconds=quiet_seconds, alone=phase.alone
        )
        try:
            _say(2, sentence)
            report = self._run_dir / f"hang-rank{self._rank:05d}.txt"
            with report.open("a", encoding="utf-8") as file:
                _say(file.fileno(), sentence)
            note_failure(self._run_dir, rank=self._rank, message=f"watchdog: {sentence}")
            if self._has_recorder:
                path = self._run_dir / f"collectives-rank{self._rank:05d}.pickle"
                path.write_bytes(recorded_collectives())
        finally:
            os._exit(EXIT_CODE)


def record_collectives(number: int) -> None:
    """Have torch keep each rank's last ones; before the process group exists."""
    if number:
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(number))


def recorded_collectives() -> bytes:
    """What torch's flight recorder holds, pickled: `torchfrtrace` reads it."""
    from torch._C import _distributed_c10d

    c10d: Any = _distributed_c10d  # its stubs leave them out
    with suppress(AttributeError):  # of builds with NCCL alone
        return bytes(c10d._dump_nccl_trace())
    return bytes(c10d._dump_fr_trace())


def describe_hang(rank: int, phase: str, *, step: int, seconds: float, alone: bool) -> str:
    """One sentence on which rank hangs, as far as this one can know."""
    where = f"rank {rank} has been in phase '{phase}' after step {step} for {seconds:.0f} seconds"
    if alone:
        return f"{where}, in which it waits for no other rank: this is the rank that hangs."
    return (
        f"{where}, in which it may wait for others: the rank that hangs is the one whose report "
        "says so, or that has written no report (stopped, or cut off), else the one whose stack is "
        "not in a collective call."
    )


def _say(descriptor: int, sentence: str) -> None:
    time_of_day = datetime.now(UTC).isoformat(timespec="seconds")
    os.write(descriptor, f"\n{time_of_day} watchdog: {sentence}\n".encode())
    faulthandler.dump_traceback(file=descriptor, all_threads=True)
