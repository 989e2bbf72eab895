"""Size and checksum of a file, to detect changes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

_PIECE_BYTES = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """Expected size and checksum of a file."""

    num_bytes: int
    sha256: str


def record_file(path: Path, *, durable: bool = False) -> FileRecord:
    """Record a file as it is, read in chunks; `durable` also flushes it to disk."""
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        if durable:
            os.fsync(file.fileno())
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            num_bytes += len(piece)
    return FileRecord(num_bytes, digest.hexdigest())
