"""Run builds in forked children that kill themselves at their k-th write, sync or rename.

Usage: kill_driver.py FOLDER FIRST STEP COUNT, then the arguments of a build; --out is added. One
line of JSON a trial: the event at which it died, and whether the next run made the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep import durable, encode, journal, shard_writer, write_corpus
from data_prep.__main__ import main
from data_prep.reading import lines, parquet

write_corpus.COMMIT_SECONDS = 0.0
encode.TASK_BYTES = lines.PART_BYTES = 3000
parquet._SLICE_BYTES = 2000


class _Killer:
    """Counts events and dies at the one that was chosen; torn writes are events of their own."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def event(self, name: str) -> None:
        self.count += 1
        if self.count == self.at:
            os.write(3, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.event(f"before {name}")
            result = function(*arguments, **keywords)
            self.event(f"after {name}")
            return result

        return call

    def install(self) -> None:
        os.fsync = self.around(os.fsync, "fsync")
        Path.rename = self.around(Path.rename, "rename")
        Path.replace = self.around(Path.replace, "replace")
        Path.unlink = self.around(Path.unlink, "unlink")
        durable.shutil.rmtree = self.around(shutil.rmtree, "rmtree")
        killer = self

        class Torn(io.FileIO):
            """Every write reaches the disk at once, in two halves."""

            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                half = len(view) // 2
                super().write(view[:half])
                killer.event("half a write")
                super().write(view[half:])
                return len(view)

        def open_torn(path: Path, mode: str = "r", **keywords: Any) -> Any:
            if "b" in mode and ("w" in mode or "+" in mode):
                raw = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if "w" in mode else 0))
                return Torn(raw, "r+b")
            return _OPEN(path, mode, **keywords)

        Path.open = open_torn


_OPEN = Path.open


def _trial(arguments: list[str], *, at: int) -> tuple[str, int]:
    """Name of the event at which a child died, and its exit code: -9 for killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 3)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        if at:
            killer = _Killer(at)
            killer.install()
        code = 1
        try:
            code = main(arguments)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        event = pipe.read().strip()
    return event, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run() -> None:
    folder, first, step, count = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    assert all(module for module in (journal, shard_writer))  # loaded before the fork
    arguments = sys.argv[5:]
    reference = folder / "reference"
    assert _trial([*arguments, "--out", str(reference)], at=0)[1] == 0
    expected = _tree(reference)
    at = first
    for _ in range(count):
        out = folder / f"killed-{at}"
        event, code = _trial([*arguments, "--out", str(out)], at=at)
        if code == 0:
            print(json.dumps({"at": at, "event": "", "code": 0}))
            return
        was_there = out.exists()
        whole = was_there and _tree(out) == expected
        if not was_there:
            _trial([*arguments, "--out", str(out)], at=0)
        result = {
            "at": at,
            "event": event,
            "code": code,
            "torn": was_there and not whole,
            "same": _tree(out) == expected,
            "left": sorted(p.name for p in folder.glob(f".killed-{at}*")) if not was_there else [],
        }
        print(json.dumps(result), flush=True)
        shutil.rmtree(out)
        at += step


if __name__ == "__main__":
    run()
