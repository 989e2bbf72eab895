"""Corpus files as read-only numpy arrays, with path and size checked before mapping."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from data_prep.record import FileRecord


def checked_path(folder: Path, record: FileRecord) -> Path:
    """The file's path, after checking that it is in the folder and has the recorded size.

    The size matters before mapping: numpy silently opens a truncated file as a shorter array,
    and a map that reaches past the end kills the process with SIGBUS.
    """
    path = folder / record.name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: points outside its folder; only files inside it are read")
    if not path.is_file():
        raise ValueError(f"{path}: missing; expected {record.num_bytes} bytes")
    found = path.stat().st_size
    if found != record.num_bytes:
        raise ValueError(
            f"{path}: damaged: expected {record.num_bytes} bytes, found {found}; "
            "copy or build the corpus again"
        )
    return path


def map_array(folder: Path, record: FileRecord, *, dtype: np.dtype) -> np.ndarray:
    """A flat read-only array over the file; pages are read when touched."""
    path = checked_path(folder, record)
    if record.num_bytes == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype)
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=dtype)
