"""The tables of a Megatron .idx, each checked before it is used."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype, sequences, document bounds
DTYPE_OF_CODE = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_ROWS_AT_ONCE = 1 << 16


def read_values(path: str, *, dtype: np.dtype, first_byte: int, count: int) -> np.ndarray:
    """Values at an offset of a file: read, not mapped, since a map kills us if it shrinks."""
    values = np.fromfile(path, dtype=dtype, count=count, offset=first_byte)
    if len(values) != count:
        raise ValueError(f"expected {count} values from byte {first_byte}, found {len(values)}")
    return values.astype(dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class MegatronIndex:
    """The tables of an .idx, read in chunks."""

    path: str
    bin_path: str
    bin_bytes: int
    dtype: np.dtype
    num_sequences: int
    num_bounds: int
    """Bounds of documents: one more than documents, the first 0, the last `num_sequences`."""
    has_modes: bool

    def lengths(self, begin: int, end: int) -> np.ndarray:
        return self._table("<i4", begin=begin, end=end, after=0)

    def pointers(self, begin: int, end: int) -> np.ndarray:
        """Bytes in the .bin at which sequences begin."""
        return self._table("<i8", begin=begin, end=end, after=4 * self.num_sequences)

    def bounds(self, begin: int, end: int) -> np.ndarray:
        """Sequences at which documents begin."""
        return self._table("<i8", begin=begin, end=end, after=12 * self.num_sequences)

    def modes(self, begin: int, end: int) -> np.ndarray:
        after = 12 * self.num_sequences + 8 * self.num_bounds
        return self._table("i1", begin=begin, end=end, after=after)

    def _table(self, dtype: str, *, begin: int, end: int, after: int) -> np.ndarray:
        kind = np.dtype(dtype)
        first_byte = INDEX_HEADER.size + after + begin * kind.itemsize
        return read_values(self.path, dtype=kind, first_byte=first_byte, count=end - begin)


def open_index(path: str) -> MegatronIndex:
    """Open the index of a pair by the path of either file, and check it against their sizes."""
    idx, data = Path(path).with_suffix(".idx"), Path(path).with_suffix(".bin")
    if not data.is_file():
        raise ValueError(f"expected {data.name} next to it, found none")
    with idx.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        head = file.read(INDEX_HEADER.size)
    if not head.startswith(INDEX_MAGIC):
        raise ValueError(f"expected {INDEX_MAGIC!r} at its start, found {head[:9]!r}")
    if len(head) < INDEX_HEADER.size:
        raise ValueError(f"expected {INDEX_HEADER.size} bytes of header, found {len(head)}")
    _, version, code, num_sequences, num_bounds = INDEX_HEADER.unpack(head)
    if version != 1:
        raise ValueError(f"expected version 1, found {version}")
    dtype = np.dtype(DTYPE_OF_CODE.get(code, "V"))
    if dtype.kind not in "iu":
        raise ValueError(f"expected integers, found dtype code {code} ({dtype.name})")
    expected = INDEX_HEADER.size + 12 * num_sequences + 8 * num_bounds
    if num_bytes not in (expected, expected + num_sequences):
        what = f"{num_sequences} sequences and {num_bounds} document bounds"
        raise ValueError(f"expected {expected} bytes for {what}, found {num_bytes}")
    index = MegatronIndex(
        path=str(idx),
        bin_path=str(data),
        bin_bytes=data.stat().st_size,
        dtype=dtype,
        num_sequences=num_sequences,
        num_bounds=num_bounds,
        has_modes=num_sequences > 0 and num_bytes == expected + num_sequences,
    )
    _check_ends(index)
    return index


def _check_ends(index: MegatronIndex) -> None:
    """Check the last entries, where a truncated file or a wrong .bin shows first."""
    last = index.num_sequences
    if index.num_bounds < 1:
        raise ValueError("expected at least one document bound, found 0")
    ends = int(index.bounds(0, 1)[0]), int(index.bounds(index.num_bounds - 1, index.num_bounds)[0])
    if ends != (0, last):
        raise ValueError(f"expected documents from sequence 0 to {last}, found {ends}")
    num_bytes = 0
    if last:
        length = int(index.lengths(last - 1, last)[0])
        num_bytes = int(index.pointers(last - 1, last)[0]) + length * index.dtype.itemsize
    if num_bytes != index.bin_bytes:
        name = Path(index.bin_path).name
        raise ValueError(f"expected {num_bytes} bytes in {name}, found {index.bin_bytes}")


def document_offsets(index: MegatronIndex, *, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each block's first document number, and the bounds of its documents in ids."""
    num_documents = index.num_bounds - 1
    num_ids = index.bin_bytes // index.dtype.itemsize
    next_id = 0
    if start:
        sequence = int(index.bounds(start, start + 1)[0])
        if not 0 <= sequence <= index.num_sequences:
            raise ValueError(f"document {start}: expected a known sequence, found {sequence}")
        next_id = num_ids
        if sequence < index.num_sequences:
            pointer = int(index.pointers(sequence, sequence + 1)[0])
            next_id = pointer // index.dtype.itemsize
            if not 0 <= next_id <= num_ids:
                raise ValueError(f"sequence {sequence}: found pointer {pointer}")
    for begin in range(start, num_documents, _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE, num_documents)
        offsets = _offsets(index, begin=begin, end=end, next_id=next_id)
        next_id = int(offsets[-1])
        yield begin, offsets


def _offsets(index: MegatronIndex, *, begin: int, end: int, next_id: int) -> np.ndarray:
    """Where documents [begin, end) begin and the last one ends; each sequence is checked.

    Megatron stores sequences back to back. Because the index must do so, no byte is read twice,
    however often a damaged index points at it.
    """
    bounds = index.bounds(begin, end + 1)
    if bounds[0] < 0 or bounds[-1] > index.num_sequences or (bounds[1:] < bounds[:-1]).any():
        raise ValueError(f"documents {begin} to {end}: expected non-decreasing bounds")
    offsets = np.zeros(len(bounds), dtype=np.int64)
    stop = int(bounds[-1])
    for first in range(int(bounds[0]), stop, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, stop)
        ends = next_id + np.cumsum(_checked_lengths(index, begin=first, end=last))
        starts = np.concatenate([[next_id], ends[:-1]])
        pointers = index.pointers(first, last)
        wrong = np.flatnonzero(pointers != starts * index.dtype.itemsize)
        if len(wrong):
            i = int(wrong[0])
            expected = int(starts[i]) * index.dtype.itemsize
            raise ValueError(
                f"sequence {first + i}: expected pointer {expected}, found {pointers[i]}"
            )
        inside = (bounds >= first) & (bounds < last)
        offsets[inside] = starts[bounds[inside] - first]
        next_id = int(ends[-1])
        if next_id * index.dtype.itemsize > index.bin_bytes:
            raise ValueError(
                f"sequence {last - 1}: expected to end within {index.bin_bytes} bytes, "
                f"found {next_id * index.dtype.itemsize}"
            )
    offsets[bounds == stop] = next_id
    return offsets


def _checked_lengths(index: MegatronIndex, *, begin: int, end: int) -> np.ndarray:
    lengths = index.lengths(begin, end).astype(np.int64)
    if (lengths < 0).any():
        i = int(np.argmax(lengths < 0))
        raise ValueError(f"sequence {begin + i}: expected a length, found {lengths[i]}")
    if index.has_modes and (modes := index.modes(begin, end)).any():
        i = int(np.argmax(modes != 0))
        raise ValueError(f"sequence {begin + i}: expected text, found mode {modes[i]}")
    return lengths
