"""What each rank prints: rank 0 on the screen, every other one in a file of the run folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = "logs"


def print_to_file(run_dir: Path, *, rank: int) -> None:
    """Redirect what this process prints from now on to `logs/rank-<rank>.log` of the run.

    Also what C++ libraries print. Rank 0 still prints where it did. A start appends to the logs of
    earlier ones.

    Raises:
        ValueError: when the file cannot be written.
    """
    if rank == 0:
        return
    path = run_dir / FOLDER / f"rank-{rank:05d}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise ValueError(f"run_dir {run_dir}: {path}: {error.strerror}") from None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
