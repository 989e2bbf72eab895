"""A .json file of records: an array of objects or a single object, read element by element."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from data_prep.reading.compressed import BROKEN_COMPRESSION, decompressed, open_input
from data_prep.reading.documents import BadInput, Document, document_of
from data_prep.reading.fields import Fields
from data_prep.reading.parts import InputFile, Item, Part
from data_prep.reading.streamed import numbered_records, parts_of_records

_READ_CHARS = 1 << 16
# Beyond it a record is taken for broken; else a missing bracket would fill the memory.
_MAX_RECORD_CHARS = 1 << 28
_BLANKS = " \t\r\n"


def holds_lines(path: str) -> bool:
    """Whether a .json file holds a record per line: its first line is an object by itself."""
    with open_input(path) as raw:
        try:
            stream = decompressed(path, raw)
            # Not the whole line: an array may be one of many GB.
            while (line := stream.readline(_READ_CHARS)) and not line.strip():
                pass
            line = line.removeprefix(codecs.BOM_UTF8).lstrip()
            if line.startswith(b"{") and not line.endswith(b"\n"):
                line += stream.readline(_MAX_RECORD_CHARS)
        except BROKEN_COMPRESSION:
            return True  # reported when it is read
    if not line.startswith(b"{"):
        return not line
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class JsonRecords:
    """Cannot be read from the middle, so its records are sent with the part; parts are records."""

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        with open_input(file.path) as raw:
            records = _records(file, raw, fields=fields)
            yield from parts_of_records(file, raw, records, start=start)

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        for place, record in numbered_records(part):
            yield _document(record, place=place, fields=fields)


def _records(file: InputFile, raw: IO[bytes], *, fields: Fields) -> Iterator[tuple[Any, int]]:
    stream = _text_of(file, raw)
    try:
        for record, size in _elements(stream):
            yield fields.part_of(record) if isinstance(record, dict) else record, size
    except UnicodeDecodeError as error:
        raise BadInput(0, reason="invalid UTF-8", detail=str(error)) from None
    except BROKEN_COMPRESSION:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInput(0, reason="broken JSON", detail=str(error)) from None
    finally:
        stream.detach()  # else it closes the file when it is collected


def _text_of(file: InputFile, raw: IO[bytes]) -> io.TextIOWrapper:
    return io.TextIOWrapper(decompressed(file.path, raw), encoding="utf-8-sig", newline="")


def _document(record: Any, *, place: int, fields: Fields) -> Document | BadInput:
    if isinstance(record, BadInput):
        return record
    if isinstance(record, dict):
        return document_of(record, place=place, wanted=fields)
    detail = f"expected an object, found {type(record).__name__}"
    return BadInput(place, reason="not a record", detail=detail)


def _elements(stream: IO[str]) -> Iterator[tuple[Any, int]]:
    """Each element of an array, or the one value, with its size in characters."""
    text = _Text(stream)
    if text.next_character() != "[":
        yield text.value()
    else:
        text.skip()
        while text.next_character() != "]":
            yield text.value()
            if text.next_character() not in ("]", ","):
                raise ValueError("expected ',' or ']' after a record")
            if text.next_character() == ",":
                text.skip()
        text.skip()
    if text.next_character():
        raise ValueError(f"found {text.next_character()!r} after the end")


class _Text:
    """A window over a stream of text, refilled as needed."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._window = ""
        self._at = 0
        self._is_at_end = False

    def next_character(self) -> str:
        """The next one that is not blank, without taking it; "" at the end."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._window) or self._is_at_end:
                return self._window[self._at : self._at + 1]
            self._refill()

    def skip(self) -> None:
        self._at += 1

    def value(self) -> tuple[Any, int]:
        self.next_character()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                if self._is_at_end or len(self._window) - self._at > _MAX_RECORD_CHARS:
                    raise ValueError(error.msg) from None
            else:
                # A number may go on behind the window.
                if end < len(self._window) or self._is_at_end:
                    size, self._at = end - self._at, end
                    return value, size
            self._refill()

    def _refill(self) -> None:
        """Read as much again as is left, so that a long record is not tried too often."""
        left = self._window[self._at :]
        more = self._stream.read(max(_READ_CHARS, len(left)))
        self._window, self._at = left + more, 0
        self._is_at_end = not more
