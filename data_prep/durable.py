"""Folders published atomically: staging, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.checksum import record_file
from common.durable import atomic_write, fsync_path
from common.locks import try_lock
from data_prep.record import FileRecord

_LOCK_NAME = ".lock"


def write_durable(path: Path, content: bytes | memoryview) -> FileRecord:
    """Write a file so that a crash leaves the old content or the new, never a mix."""
    atomic_write(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return FileRecord(name=path.name, num_bytes=path.stat().st_size, sha256=digest)


def describe_file(path: Path) -> FileRecord:
    """Name, size and checksum of a file, read in pieces."""
    found = record_file(path)
    return FileRecord(name=path.name, num_bytes=found.num_bytes, sha256=found.sha256)


def refuse_existing(out: Path, *, marker: str, overwrite: bool) -> None:
    """Fail before any work if `out` exists; `marker` is the file that shows it is ours."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out}: exists and is not a folder; choose another name")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / marker).is_file():
        # Never delete what we did not write, whatever the flags say.
        raise ValueError(f"{out}: is not empty and has no {marker}; choose another folder")
    if not overwrite:
        raise ValueError(f"{out}: already exists; choose another name or add --overwrite")


@contextmanager
def staged_folder(out: Path, *, keeps_unfinished: bool = False) -> Iterator[Path]:
    """Yield the folder `content` in a hidden one next to `out`; renamed to `out` on success.

    It is empty, unless `keeps_unfinished`: then it holds what an earlier run left there and next
    to `content`, and what this run leaves, if anything, is kept for the next. Either way a killed
    process leaves only the hidden folder.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.building")
    staging.mkdir(exist_ok=True)
    lock = os.open(staging / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not try_lock(lock):
            raise ValueError(f"{out}: another process is writing it; wait until it finishes")
        content = staging / "content"
        if not keeps_unfinished:
            clear_staged(content)
        content.mkdir(exist_ok=True)
        try:
            yield content
            fsync_path(content)
            _swap_in(content, out=out)
        except BaseException:
            if not keeps_unfinished or _is_unused(staging):
                shutil.rmtree(staging, ignore_errors=True)
            raise
        shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(lock)


def _is_unused(staging: Path) -> bool:
    names = {entry.name for entry in staging.iterdir()}
    return names <= {_LOCK_NAME, "content"} and not any((staging / "content").iterdir())


def clear_staged(content: Path) -> None:
    """Remove what a run left in a folder of `staged_folder` and next to it, except the lock."""
    for entry in content.parent.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK_NAME:
            entry.unlink()
    content.mkdir()


def _swap_in(content: Path, *, out: Path) -> None:
    retired = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(retired)
    content.rename(out)
    fsync_path(out.parent)
    shutil.rmtree(retired, ignore_errors=True)
