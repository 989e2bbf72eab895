"""Records that can only be read from the beginning of a file, sent to workers in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any

from data_prep.reading.compressed import BROKEN_COMPRESSION
from data_prep.reading.documents import BadInput
from data_prep.reading.parts import PART_BYTES, InputFile, Part


def parts_of_records(
    file: InputFile, raw: IO[bytes], records: Iterable[tuple[Any, int]], *, start: int
) -> Iterator[Part]:
    """Records, each with its size, as parts of them, from the record `start`.

    A part of its own says what ends the records early: a `BadInput` that the iterator raises, or
    a broken compression.
    """
    place = begin = start
    waiting: list[Any] = []
    size, before = 0, 0
    bad = None
    try:
        for number, (record, record_size) in enumerate(records):
            if number < start:
                continue
            waiting.append(record)
            place, size = number + 1, size + record_size
            if size >= PART_BYTES:
                num_bytes, before = raw.tell() - before, raw.tell()
                yield Part(file, begin, place, num_bytes=num_bytes, data=waiting)
                begin, waiting, size = place, [], 0
    except BadInput as error:
        bad = error.at(place)
    except BROKEN_COMPRESSION as error:
        bad = broken_compression(error, place=place)
    if waiting:
        yield Part(file, begin, place, num_bytes=raw.tell() - before, data=waiting)
    if bad:
        yield Part(file, place, place, data=bad)


def numbered_records(part: Part) -> Iterator[tuple[int, Any]]:
    """The records of a part with their numbers in the file, or its `BadInput`."""
    if isinstance(part.data, BadInput):
        yield part.data.place, part.data
    else:
        yield from enumerate(part.data, start=part.start)


def broken_compression(error: Exception, *, place: int) -> BadInput:
    return BadInput(place, reason="broken compression", detail=str(error))
