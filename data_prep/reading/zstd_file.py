"""A Zstandard file as a readable stream that detects truncation."""

from __future__ import annotations

import io
from typing import IO

import zstandard

# Small: highly repetitive text may grow ten-thousand-fold when it is decompressed.
_READ_BYTES = 1 << 14


def open_zstd(raw: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_ZstdStream(raw), buffer_size=1 << 18)


class _ZstdStream(io.RawIOBase):
    """Frames one after another; zstandard's own reader silently ends inside a frame."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._inside_frame = False
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            compressed = self._compressed or self._raw.read(_READ_BYTES)
            self._compressed = b""
            if not compressed:
                if self._inside_frame:
                    raise EOFError("the file ends inside a compressed frame; it is truncated")
                return 0
            self._inside_frame = True
            self._ready = memoryview(self._frame.decompress(compressed))
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._inside_frame = False
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
