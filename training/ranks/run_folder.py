"""The run folder: it can be written, and belongs to one start at a time."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from common.locks import try_lock
from training.ranks.dist import Layout, raise_together

LOCK_FILE = "run.lock"
_PATIENCE_SECONDS = 120.0
"""For a start on another host: file servers keep locks of a host that is lost for about so long."""


@contextmanager
def lock_run_dir(run_dir: Path, layout: Layout) -> Iterator[None]:
    """Make the folder and keep other starts out of it. Every rank enters; rank 0 holds the lock.

    The kernel lets go of it when the process ends, however it does.

    Raises:
        ValueError: on every rank, for a folder that cannot be written or is another start's.
    """
    descriptor, error = _take(run_dir) if layout.is_main else (None, None)
    try:
        raise_together(error)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take(run_dir: Path) -> tuple[int | None, str | None]:
    """The open lock, or the text of what is wrong."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # permissions alone do not tell: a file system may be mounted to be read only
        with TemporaryFile(dir=run_dir):
            pass
        descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        return None, f"run_dir {run_dir}: {error.strerror}"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    is_told = False
    while not try_lock(descriptor):
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
        host = holder.partition(" ")[0]
        if host == socket.gethostname() or time.monotonic() > deadline:
            os.close(descriptor)
            return None, (
                f"run_dir {run_dir}: another start is at work in it ({holder}); end that one, or "
                "choose another run_dir"
            )
        if not is_told:
            print(f"{run_dir} is still held ({holder}); waiting", file=sys.stderr, flush=True)
            is_told = True
        time.sleep(1)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{socket.gethostname()} process {os.getpid()}".encode(), 0)
    return descriptor, None
