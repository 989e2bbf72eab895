"""Entropies that training measures in passing: one float16 for each token of each sample.

A file of the run, read and written row by row. Files are opened for every access: so a rank on
another host sees what was written before the last collective, on NFS too (close-to-open).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.durable import write_all

_DTYPE = np.dtype("<f2")
_LARGEST = float(np.finfo(_DTYPE).max)
# What is stored is the bit pattern xor that of NaN: a hole of the sparse file reads as no value.
_NAN_BITS = np.uint16(0x7E00)
_COPY_BYTES = 1 << 24


class EntropyCache:
    """Signed values: a set sign bit marks one that was measured after a dropped input."""

    def __init__(self, path: Path, *, num_samples: int, sample_tokens: int) -> None:
        self.path = path
        self._num_samples = num_samples
        self._sample_tokens = sample_tokens

    @property
    def num_bytes(self) -> int:
        return self._num_samples * self._sample_tokens * _DTYPE.itemsize

    def clear(self) -> None:
        """Replace any cache by an empty one. For one rank, with the others waiting."""
        with self.path.open("wb") as file:
            file.truncate(self.num_bytes)

    def read(self, samples: Sequence[int], *, first: int, count: int) -> NDArray[np.float32]:
        """`[rows, count]` of the tokens from `first` on; NaN where there is no value.

        Args:
            samples: numbers in the pack; -1 is a row without values.
            first, count: may reach beyond the sample's end, where there are no values.
        """
        values = np.full((len(samples), count), np.nan, dtype=np.float32)
        inside = max(0, min(count, self._sample_tokens - first))
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for row, sample in enumerate(samples):
                if sample >= 0:
                    content = os.pread(descriptor, inside * 2, self._offset(sample, first))
                    bits = np.frombuffer(content, dtype="<u2") ^ _NAN_BITS
                    values[row, :inside] = bits.view(_DTYPE)
        finally:
            os.close(descriptor)
        return values

    def write(self, samples: Sequence[int], values: NDArray[np.float32], *, first: int) -> None:
        """Overwrite rows: values to keep must be in `values`.

        Args:
            values: `[rows, count]` of the tokens from `first` on; NaN for none. Values beyond
                float16 become its largest.
        """
        inside = max(0, min(values.shape[1], self._sample_tokens - first))
        limited = values[:, :inside].clip(-_LARGEST, _LARGEST).astype(_DTYPE)
        bits = limited.view("<u2") ^ _NAN_BITS
        bits[np.isnan(limited)] = 0
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            for row, sample in enumerate(samples):
                if sample >= 0:
                    write_all(descriptor, bits[row].tobytes(), offset=self._offset(sample, first))
        finally:
            os.close(descriptor)  # on NFS this sends the data, so a failed write shows here

    def save(self, target: Path, *, rank: int, world_size: int) -> None:
        """Copy this rank's share of the file; all ranks together copy all of it."""
        _copy_share(self.path, target, self._share(rank, world_size))

    def load(self, source: Path, *, rank: int, world_size: int) -> None:
        """The reverse; call `clear` first."""
        _copy_share(source, self.path, self._share(rank, world_size))

    def _share(self, rank: int, world_size: int) -> range:
        return range(self.num_bytes * rank // world_size, self.num_bytes * (rank + 1) // world_size)

    def _offset(self, sample: int, first: int) -> int:
        return (sample * self._sample_tokens + first) * _DTYPE.itemsize


def _copy_share(source: Path, target: Path, share: range) -> None:
    read_from = os.open(source, os.O_RDONLY)
    write_to = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        for start in range(share.start, share.stop, _COPY_BYTES):
            content = os.pread(read_from, min(_COPY_BYTES, share.stop - start), start)
            write_all(write_to, content, offset=start)
        os.fsync(write_to)
    finally:
        os.close(read_from)
        os.close(write_to)
