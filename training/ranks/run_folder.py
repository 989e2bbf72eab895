"""The run folder: writable, and locked by one start at a time."""

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
"""For a start on another host: file servers keep locks of a lost host for about this long."""


@contextmanager
def lock_run_dir(run_dir: Path, layout: Layout) -> Iterator[None]:
    """Create the folder and keep other starts out. Every rank enters; rank 0 holds the lock.

    The kernel releases it when the process ends, however it ends.

    Raises:
        ValueError: on every rank, for a folder that is not writable or in use by another start.
    """
    descriptor, error = _take(run_dir) if layout.is_main else (None, None)
    try:
        raise_together(error)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take(run_dir: Path) -> tuple[int | None, str | None]:
    """The open lock, or an error message."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # permissions alone do not show it: a file system may be mounted read-only
        with TemporaryFile(dir=run_dir):
            pass
        descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        holder = _wait_for(descriptor, run_dir)
        if holder is None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{socket.gethostname()} process {os.getpid()}".encode(), 0)
    except OSError as error:
        return None, f"run_dir {run_dir}: {error.strerror}"
    if holder is not None:
        os.close(descriptor)
        return None, (
            f"run_dir {run_dir} is in use by another start ({holder}); end that one, or choose "
            "another run_dir"
        )
    return descriptor, None


def _wait_for(descriptor: int, run_dir: Path) -> str | None:
    """Take the lock; who holds it, if it stays another's."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    has_printed = False
    while not try_lock(descriptor):
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
        host = holder.partition(" ")[0]
        if host == socket.gethostname() or time.monotonic() > deadline:
            return holder
        if not has_printed:
            print(f"{run_dir} is still locked ({holder}); waiting", file=sys.stderr, flush=True)
            has_printed = True
        time.sleep(1)
    return None
