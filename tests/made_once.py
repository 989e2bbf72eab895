"""What several workers of pytest need is made by the first of them that asks."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, the same for all workers; nobody may change what is in it.

    Args:
        name: of the folder, another one for each use.
        make: called with the path of the folder, which is not there yet.
    """
    root = factory.getbasetemp()
    if root.name.startswith("popen-"):  # of a worker; its parent is that of all
        root = root.parent
    folder, made = root / f"{name}.shared", root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(folder)
            made.touch()
    return folder
