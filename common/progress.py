"""Progress bars with an end in sight: lively on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
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
    """A bar on stderr; in a log file a new line every 10 seconds is enough.

    Args:
        done: what an earlier run did; it counts as progress but not as speed.
        shows: False on processes that leave the bar to another.
        delay: seconds that pass before anything is shown.
    """
    is_terminal = sys.stderr.isatty()
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
