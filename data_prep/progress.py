"""Progress bars with an end in sight: lively on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from tqdm import tqdm

from data_prep.reading.sources import InputFile


def progress_bar(total: int | None, *, what: str, unit: str) -> tqdm[NoReturn]:
    """A bar on stderr; in a log file a new line every 10 seconds is enough."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=True,
        file=sys.stderr,
        mininterval=0.1 if is_terminal else 10.0,
        dynamic_ncols=is_terminal,
    )


def bytes_bar(files: Sequence[InputFile], *, what: str) -> tqdm[NoReturn]:
    """A bar over the bytes on disk: known beforehand, whatever the files hold."""
    return progress_bar(sum(file.num_bytes for file in files), what=what, unit="B")
