"""A lock keeps others out, or says that it cannot."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.locks import try_lock


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def fail_with(number: int, patch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(fcntl, "flock", flock)


def test_a_file_system_without_locks_is_told(opened, tmp_path, monkeypatch, capsys):
    fail_with(errno.ENOLCK, monkeypatch)
    assert try_lock(opened)
    assert capsys.readouterr().err == (
        f"WARNING: {tmp_path / 'run.lock'}: No locks available; see that no other start uses it\n"
    )


def test_a_lock_that_fails_otherwise_is_not_held(opened, monkeypatch):
    fail_with(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        try_lock(opened)
