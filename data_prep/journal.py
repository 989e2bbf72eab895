"""The progress of an unfinished build on disk, from which the next run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from common.durable import fsync_path
from data_prep.durable import write_durable
from data_prep.ledger import Split, Tally
from data_prep.manifest import Shard
from data_prep.record import Record
from data_prep.shard_writer import OpenShard

PLAN_NAME = "plan.json"
JOURNAL_NAME = "journal.jsonl"


class Position(Record):
    """Everything needed to resume a build."""

    domain: int = 0
    file: int = 0
    """Number of the current input."""
    start: int = 0
    """Where its next part begins."""
    tallies: dict[str, Tally] = Field(default_factory=dict)
    open_shards: dict[Split, OpenShard] = Field(default_factory=dict)
    num_bytes: int = 0
    """Bytes of input read, for the progress bar."""


class _Line(Record):
    """A finished shard or a durable position."""

    shard: Shard | None = None
    position: Position | None = None


class Journal:
    """Append-only lines, each written once the bytes it refers to are on disk.

    Stored next to the folder with the shards, so that the finished folder does not contain it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder.parent / JOURNAL_NAME
        self.position = Position()
        self.shards: list[Shard] = []
        num_bytes = self._replay()
        self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        self._file.truncate(num_bytes)  # a torn line, shards finished after the last position
        self._file.seek(num_bytes)
        fsync_path(folder.parent)
        self._remove_unknown(folder)

    def commit(self, position: Position, *, new_shards: list[Shard]) -> None:
        """Record a position whose shards are already durable."""
        lines = [_Line(shard=shard) for shard in new_shards]
        lines.append(_Line(position=position))
        text = "".join(line.model_dump_json(exclude_none=True) + "\n" for line in lines)
        self._file.write(text.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.position = position
        self.shards += new_shards

    def close(self) -> None:
        self._file.close()

    def _replay(self) -> int:
        """Read up to the last complete position and return the number of bytes up to it."""
        if not self._path.exists():
            return 0
        waiting: list[Shard] = []
        num_bytes = end = 0
        with self._path.open("rb") as lines:
            for raw in lines:
                try:
                    line = _Line.model_validate_json(raw)
                except ValidationError:
                    break
                end += len(raw)
                if line.shard is not None:
                    waiting.append(line.shard)
                if line.position is not None:
                    self.position = line.position
                    self.shards += waiting
                    waiting, num_bytes = [], end
        return num_bytes

    def _remove_unknown(self, folder: Path) -> None:
        """Delete files of shards that no position refers to; they will be written again."""
        known = {file.name for shard in self.shards for file in shard.files}
        for shard in self.position.open_shards.values():
            if shard.num_documents:
                known |= {path.name for path in folder.glob(f"{shard.stem}.*")}
        for path in folder.glob("shard-*"):
            if path.name not in known:
                path.unlink()


def plan_of_last_run(folder: Path) -> dict[str, Any] | None:
    """The plan of the unfinished build in the folder, if it has one.

    Raises:
        ValueError: if it exists but cannot be read.
    """
    path = folder / PLAN_NAME
    try:
        plan = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}; start over with --restart") from None
    if not isinstance(plan, dict):
        raise ValueError(f"{path}: damaged: expected an object; start over with --restart")
    return plan


def write_plan(folder: Path, plan: dict[str, Any]) -> None:
    write_durable(folder / PLAN_NAME, json.dumps(plan, indent=1, sort_keys=True).encode())


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of the entries that differ between two plans."""
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def digest_of(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
