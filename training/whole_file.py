"""A text file written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str, *, writer: str = "") -> None:
    """Replace a file at once, durably: a kill at any moment leaves the old content or the new.

    Args:
        writer: tells the files aside of several writers of one path apart.

    Raises:
        OSError: when the disk refuses; the old content is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}{writer}.partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
