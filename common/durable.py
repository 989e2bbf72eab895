"""Atomic, durable writes: after a kill or power cut a file is old or new, never partial."""

from __future__ import annotations

import os
from pathlib import Path


def atomic_write(path: Path, content: str | bytes | memoryview, *, writer: str = "") -> None:
    """Replace a file at once, durably; text as UTF-8.

    Args:
        path: its folder is created if missing.
        writer: distinguishes temporary files of several writers of one path.

    Raises:
        OSError: when the write fails; the old content is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{writer}.partial")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Flush a file, or the names in a folder: fsync of a file alone persists only its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes | memoryview, *, offset: int | None = None) -> None:
    """`os.write`, or `os.pwrite` at an offset, until all is written: near a full disk either may
    write only a part, and reports that only in its result."""
    rest, written = memoryview(content).cast("B"), 0
    while written < len(rest):
        if offset is None:
            written += os.write(descriptor, rest[written:])
        else:
            written += os.pwrite(descriptor, rest[written:], offset + written)
