"""Files that a kill or a power cut leaves as they were or as they were to be, never in between."""

from __future__ import annotations

import os
from pathlib import Path


def atomic_write(path: Path, content: str | bytes | memoryview, *, writer: str = "") -> None:
    """Replace a file at once, durably; text as UTF-8.

    Args:
        path: its folder is made when it is not there.
        writer: tells temporary files of several writers of one path apart.

    Raises:
        OSError: when the disk refuses; the old content is untouched.
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
    """Flush a file, or the names in a folder: fsync of a file alone keeps only its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes | memoryview, *, offset: int | None = None) -> None:
    """`os.write`, or `os.pwrite` at an offset, until all is written: near a full disk either may
    take only a part, and say so by its result alone."""
    rest, done = memoryview(content).cast("B"), 0
    while done < len(rest):
        if offset is None:
            done += os.write(descriptor, rest[done:])
        else:
            done += os.pwrite(descriptor, rest[done:], offset + done)
