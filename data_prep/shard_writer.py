"""The writer of shards: ids and document offsets of one split, rolled over at a size."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from data_prep.manifest import FileRecord, Shard, Split


class ShardWriter:
    """Appends documents to `shard-<split>-00000.tokens` and `.docs`, then to the next shard."""

    def __init__(
        self, folder: Path, *, split: Split, dtype: np.dtype, max_shard_bytes: int
    ) -> None:
        self.shards: list[Shard] = []
        self._folder = folder
        self._split: Split = split
        self._dtype = dtype
        self._max_tokens = max(1, max_shard_bytes // dtype.itemsize)
        self._tokens: _HashedFile | None = None
        self._docs: _HashedFile | None = None
        self._num_tokens = 0

    def add(self, tokens: np.ndarray, *, lengths: np.ndarray) -> None:
        """Append documents that lie back to back in `tokens`; none is cut over two shards."""
        ends = np.cumsum(lengths, dtype=np.int64)
        row = 0
        while row < len(ends):
            base = int(ends[row - 1]) if row else 0
            room = self._max_tokens - self._num_tokens
            last = int(np.searchsorted(ends, base + room, side="right"))
            if last == row and self._num_tokens:
                self._close_shard()
                continue
            last = max(last, row + 1)  # a document larger than a shard has one of its own
            self._write(tokens[base : ends[last - 1]], ends=ends[row:last] - base)
            row = last

    def close(self) -> list[Shard]:
        self._close_shard()
        return self.shards

    def _write(self, tokens: np.ndarray, *, ends: np.ndarray) -> None:
        if self._tokens is None or self._docs is None:
            stem = f"shard-{self._split}-{len(self.shards):05d}"
            self._tokens = _HashedFile(self._folder / f"{stem}.tokens")
            self._docs = _HashedFile(self._folder / f"{stem}.docs")
            self._docs.write(np.zeros(1, dtype="<i8"))
        self._tokens.write(np.ascontiguousarray(tokens, dtype=self._dtype))
        self._docs.write((ends + self._num_tokens).astype("<i8"))
        self._num_tokens += len(tokens)

    def _close_shard(self) -> None:
        if self._tokens is None or self._docs is None:
            return
        tokens, docs = self._tokens.close(), self._docs.close()
        shard = Shard(
            name=tokens.name.removesuffix(".tokens"),
            split=self._split,
            num_documents=docs.num_bytes // 8 - 1,
            num_tokens=self._num_tokens,
            tokens=tokens,
            docs=docs,
        )
        self.shards.append(shard)
        self._tokens = self._docs = None
        self._num_tokens = 0


class _HashedFile:
    """A file that knows size and checksum of what went in, without reading it again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, array: np.ndarray) -> None:
        self._file.write(array.data)
        self._digest.update(array.data)
        self._num_bytes += array.nbytes

    def close(self) -> FileRecord:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileRecord(
            name=self._path.name, num_bytes=self._num_bytes, sha256=self._digest.hexdigest()
        )
