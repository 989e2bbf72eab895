"""Progress bars: live on a terminal, occasional lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from threading import RLock
from typing import NoReturn

from tqdm import tqdm


def progress_bar(
    total: int | None,
    *,
    what: str,
    unit: str,
    done: int = 0,
    shows: bool = True,
    delay: float = 0.0,
) -> tqdm[NoReturn]:
    """A bar on stderr; in a log file a new line every 10 seconds.

    Args:
        done: work of an earlier run; it counts as progress but not as speed.
        shows: False on processes that show no bar.
        delay: seconds before anything is shown.
    """
    is_terminal = sys.stderr.isatty()
    # A bar is of one process; tqdm's own lock would load all of multiprocessing.
    tqdm.set_lock(RLock())
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=True,
        file=sys.stderr,
        mininterval=0.1 if is_terminal else 10.0,
        dynamic_ncols=is_terminal,
        disable=not shows,
        delay=delay,
    )


class StepProgress:
    """Steps of a total: a bar on a terminal; in a log, which a bar would fill, rare lines."""

    def __init__(
        self, total: int, *, what: str, done: int = 0, seconds_between_lines: float = 10.0
    ) -> None:
        """Begin at `done`, which counts as progress but not as speed."""
        self._what, self._first, self._done = what, done, done
        self._seconds_between_lines = seconds_between_lines
        self._began = self._last_line = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit="step",
            dynamic_ncols=True,
            disable=not self._is_terminal,
        )

    def show(
        self,
        done: int,
        total: int,
        *,
        numbers: Mapping[str, str] | None = None,
        always: bool = False,
    ) -> None:
        """Where the work is now, which may be behind where it was.

        Args:
            numbers: to be shown with it, by name.
            always: write a line to a log even if the last one is recent.
        """
        now = time.monotonic()
        if self._is_terminal:
            self._bar.total = total
            self._bar.set_postfix(numbers, refresh=False)
            if done == self._done:
                self._bar.refresh()
            self._bar.update(done - self._done)
            if done < self._done:
                self._bar.refresh()
        elif total and (always or now - self._last_line >= self._seconds_between_lines):
            self._last_line = now
            self._print_line(done, total, numbers or {}, seconds=now - self._began)
        self._done = done

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _print_line(
        self, done: int, total: int, numbers: Mapping[str, str], *, seconds: float
    ) -> None:
        left = "?"
        if done > self._first:
            left = tqdm.format_interval(seconds / (done - self._first) * (total - done))
        share = f"{self._what}: step {done}/{total} ({100 * done // total}%)"
        shown = [f"{name} {value}" for name, value in numbers.items()]
        print("  ".join([share, *shown, f"ETA {left}"]), file=sys.stderr, flush=True)
