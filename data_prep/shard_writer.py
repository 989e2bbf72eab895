"""Writes the shards of one domain and split: size-limited and resumable."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.ledger import Split
from data_prep.manifest import OFFSET_BYTES, ORIGIN_BYTES, Shard
from data_prep.record import FileRecord, Record

_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Documents:
    """Documents back to back, in the shards' data types."""

    tokens: np.ndarray
    """[N] uint16 or uint32, little-endian."""
    lengths: np.ndarray
    """[documents] int64."""
    origins: np.ndarray
    """[documents, 2] int64: number of the input file, place in it."""
    mask: np.ndarray | None = None
    """[N] uint8, 1 where the token is a target."""

    def part(self, is_wanted: np.ndarray) -> Documents:
        """Those documents for which `is_wanted` [documents] bool is set."""
        if is_wanted.all():
            return self
        # Wanted documents in a row are copied at once.
        edges = np.flatnonzero(np.diff(is_wanted, prepend=False, append=False)).reshape(-1, 2)
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        runs = [slice(start, end) for start, end in ends[edges]]
        return Documents(
            tokens=_rows(self.tokens, runs=runs),
            lengths=self.lengths[is_wanted],
            origins=self.origins[is_wanted],
            mask=None if self.mask is None else _rows(self.mask, runs=runs),
        )


def _rows(array: np.ndarray, *, runs: list[slice]) -> np.ndarray:
    return np.concatenate([array[:0], *(array[run] for run in runs)])


class OpenShard(Record):
    """The size of a shard when it was last made durable."""

    stem: str
    number: int = 0
    num_documents: int = 0
    num_tokens: int = 0


class ShardWriter:
    """Appends documents to `shard-<split>-<domain>-00000.*`, then to the next shard."""

    def __init__(
        self,
        folder: Path,
        *,
        domain: str,
        split: Split,
        dtype: np.dtype,
        max_shard_bytes: int,
        has_mask: bool = False,
        resume: OpenShard | None = None,
    ) -> None:
        self.domain = domain
        self.split: Split = split
        self._folder = folder
        self._dtype = dtype
        self._max_tokens = max(1, max_shard_bytes // dtype.itemsize)
        self._suffixes = ["tokens", "docs", "origins", *(["mask"] if has_mask else [])]
        self._at = resume or self._fresh(number=0)
        self._files: dict[str, _HashedFile] = {}
        if self._at.num_documents:
            self._open()

    def add(self, documents: Documents) -> list[Shard]:
        """Append documents and return the shards that became full; no document spans two."""
        closed: list[Shard] = []
        ends = np.cumsum(documents.lengths, dtype=np.int64)
        row = 0
        while row < len(ends):
            base = int(ends[row - 1]) if row else 0
            room = self._max_tokens - self._at.num_tokens
            last = int(np.searchsorted(ends, base + room, side="right"))
            if last == row and self._at.num_documents:
                closed += self.close()
                continue
            last = max(last, row + 1)  # a document larger than a shard gets its own
            self._write(documents, rows=slice(row, last), ends=ends[row:last] - base, base=base)
            row = last
        return closed

    def sync(self) -> OpenShard:
        """Make what was added durable; a later writer may resume from what this returns."""
        for file in self._files.values():
            file.sync()
        return self._at

    def close(self) -> list[Shard]:
        """Finish the current shard, if there is one."""
        if not self._files:
            return []
        records = {suffix: file.close() for suffix, file in self._files.items()}
        shard = Shard(
            name=self._at.stem,
            domain=self.domain,
            split=self.split,
            num_documents=self._at.num_documents,
            num_tokens=self._at.num_tokens,
            **records,
        )
        self._files = {}
        self._at = self._fresh(number=self._at.number + 1)
        return [shard]

    def abandon(self) -> None:
        """Close the files as they are; the next run truncates them to the last `sync`."""
        for file in self._files.values():
            file.abandon()

    def _fresh(self, *, number: int) -> OpenShard:
        return OpenShard(stem=f"shard-{self.split}-{self.domain}-{number:05d}", number=number)

    def _open(self) -> None:
        kept = {
            "tokens": self._at.num_tokens * self._dtype.itemsize,
            "docs": (self._at.num_documents + 1) * OFFSET_BYTES if self._at.num_documents else 0,
            "origins": self._at.num_documents * ORIGIN_BYTES,
            "mask": self._at.num_tokens,
        }
        self._files = {
            suffix: _HashedFile(self._folder / f"{self._at.stem}.{suffix}", num_bytes=kept[suffix])
            for suffix in self._suffixes
        }
        if not self._at.num_documents:
            self._files["docs"].write(np.zeros(1, dtype="<i8"))

    def _write(self, documents: Documents, *, rows: slice, ends: np.ndarray, base: int) -> None:
        if not self._files:
            self._open()
        tokens = slice(base, base + int(ends[-1]))
        num_tokens = self._at.num_tokens
        self._files["tokens"].write(documents.tokens[tokens].astype(self._dtype, copy=False))
        self._files["docs"].write((ends + num_tokens).astype("<i8"))
        self._files["origins"].write(documents.origins[rows].astype("<i8"))
        if "mask" in self._files:
            assert documents.mask is not None
            self._files["mask"].write(documents.mask[tokens].astype("u1", copy=False))
        self._at = OpenShard(
            stem=self._at.stem,
            number=self._at.number,
            num_documents=self._at.num_documents + len(ends),
            num_tokens=num_tokens + int(ends[-1]),
        )


class _HashedFile:
    """A file that knows the size and checksum of what was written.

    Opened again with `num_bytes`, it keeps that much, reads it once for the checksum and
    truncates the rest: bytes that were written but never committed.
    """

    def __init__(self, path: Path, *, num_bytes: int) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._file = path.open("r+b" if num_bytes else "w+b")
        while self._num_bytes < num_bytes:
            piece = self._file.read(min(_READ_BYTES, num_bytes - self._num_bytes))
            if not piece:
                raise ValueError(
                    f"{path}: expected {num_bytes} bytes from the unfinished build, found "
                    f"{self._num_bytes}; start over with --restart"
                )
            self._digest.update(piece)
            self._num_bytes += len(piece)
        self._file.truncate(num_bytes)
        self._file.seek(num_bytes)

    def write(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> FileRecord:
        self.sync()
        self._file.close()
        return FileRecord(
            name=self._path.name, num_bytes=self._num_bytes, sha256=self._digest.hexdigest()
        )

    def abandon(self) -> None:
        with suppress(OSError):  # a full disk raises again when the buffer is flushed
            self._file.close()
