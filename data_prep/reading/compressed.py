"""Compressed files as readable streams that detect truncation: .gz, .zst, .bz2, .xz."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import IO, Any, cast

from common.remote import is_remote, open_remote

# Small: highly repetitive text may grow ten-thousand-fold when it is decompressed.
_READ_BYTES = 1 << 14


class BrokenFrame(ValueError):
    """Data that its decompressor rejects."""


BROKEN_COMPRESSION = (EOFError, gzip.BadGzipFile, zlib.error, BrokenFrame)


def _new_zstandard_frame() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


_NEW_FRAME: dict[str, Callable[[], Any]] = {
    ".zst": _new_zstandard_frame,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}
COMPRESSION_SUFFIXES = (".gz", *_NEW_FRAME)
SHORT_SUFFIXES = {".tgz": ".gz", ".tbz": ".bz2", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}

_FIRST_BYTES = {
    b"\x1f\x8b": "gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "Zstandard (.zst)",
    b"BZh": "bzip2 (.bz2)",
    b"\xfd7zXZ\x00": "xz (.xz)",
    b"PK\x03\x04": "a zip archive",
}


def format_hint(content: bytes) -> str:
    """Which compressed format a file's first bytes are of, to be told with what is wrong; or ""."""
    names = [name for begin, name in _FIRST_BYTES.items() if content.startswith(begin)]
    if not names:
        return ""
    mend = "unpack it" if "archive" in names[0] else "add its suffix to the name"
    return f"; the file begins like {names[0]}: {mend}"


def open_input(path: str) -> IO[bytes]:
    """A file, or an object of a store, to be read as it is."""
    return open_remote(path) if is_remote(path) else Path(path).open("rb")


def decompressed(path: str, raw: IO[bytes]) -> IO[bytes]:
    """The content of an open file, decompressed if its suffix says so."""
    suffix = PurePath(path).suffix.lower()
    suffix = SHORT_SUFFIXES.get(suffix, suffix)
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb"))
    if suffix in _NEW_FRAME:
        frames = _Frames(raw, new_frame=_NEW_FRAME[suffix])
        return io.BufferedReader(frames, buffer_size=1 << 18)
    return raw


class _Frames(io.RawIOBase):
    """Frames one after another; the libraries' own readers end silently inside one or behind it."""

    def __init__(self, raw: IO[bytes], *, new_frame: Callable[[], Any]) -> None:
        self._raw = raw
        self._new_frame = new_frame
        self._frame = new_frame()
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
            self._ready = memoryview(self._decompress(compressed))
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = self._new_frame()
                self._inside_frame = False
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self, compressed: bytes) -> bytes:
        try:
            return cast(bytes, self._frame.decompress(compressed))
        except MemoryError:
            raise
        except Exception as error:  # each library raises its own kind
            raise BrokenFrame(str(error)) from None
