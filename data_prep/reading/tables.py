"""Tables as text (.csv, .tsv): a row is a record, the first row names its fields."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import IO

from data_prep.reading.compressed import decompressed, open_input
from data_prep.reading.documents import BadInput, document_of, invalid_utf8
from data_prep.reading.fields import Fields, proposal
from data_prep.reading.parts import InputFile, Item, Part
from data_prep.reading.streamed import numbered_records, parts_of_records

_MAX_FIELD_CHARS = 1 << 30  # the module's own limit of 128 K would refuse long texts


class Tables:
    """A line end within quotes is no end of a row, so rows are read here and sent with the part."""

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        with open_input(file.path) as raw:
            records = _records(file, raw, fields=fields)
            yield from parts_of_records(file, raw, records, start=start)

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        for place, record in numbered_records(part):
            if isinstance(record, BadInput):
                yield record
            else:
                yield document_of(record, place=place, wanted=fields)


def _records(
    file: InputFile, raw: IO[bytes], *, fields: Fields
) -> Iterator[tuple[dict[str, str] | BadInput, int]]:
    csv.field_size_limit(_MAX_FIELD_CHARS)
    # Bytes that are no UTF-8 become lone surrogates, so that they cost a row, not the file.
    text = io.TextIOWrapper(
        decompressed(file.path, raw), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    rows = _rows(text, path=PurePath(file.path))
    try:
        if bad := _bad_names(names := next(rows, []), fields=fields):
            raise bad
        for number, row in enumerate(rows):
            record = _record(row, names=names, place=number, fields=fields)
            yield record, sum(map(len, row))
    except csv.Error as error:
        detail = f"{error}; no row from here on is read"
        raise BadInput(0, reason="broken table", detail=detail) from None
    finally:
        text.detach()  # else it closes the file when it is collected


def _rows(text: IO[str], *, path: PurePath) -> Iterator[list[str]]:
    delimiter = "\t" if ".tsv" in map(str.lower, path.suffixes) else ","
    return (row for row in csv.reader(text, delimiter=delimiter, strict=True) if row)


def _bad_names(names: list[str], *, fields: Fields) -> BadInput | None:
    if found := _not_utf8(names, place=0):
        return found.with_hint(" in the names of the columns; save the table as UTF-8")
    for wanted in fields.as_dict().values():
        if wanted not in names:
            detail = f"columns: {', '.join(names[:8]) or 'none'}; the first row names them"
            detail += proposal(dict.fromkeys(names, ""), wanted, wanted=fields)
            return BadInput(0, reason=f"missing column {wanted!r}", detail=detail)
        if names.count(wanted) > 1:
            detail = "rename one, or name another with --field"
            return BadInput(0, reason=f"several columns {wanted!r}", detail=detail)
    return None


def _record(
    row: list[str], *, names: list[str], place: int, fields: Fields
) -> dict[str, str] | BadInput:
    if len(row) != len(names):
        detail = f"{len(row)} fields, the first row has {len(names)}"
        return BadInput(place, reason="row of another length", detail=detail)
    record = {key: row[names.index(key)] for key in fields.as_dict().values()}
    return _not_utf8(record.values(), place=place) or record


def _not_utf8(values: Iterable[str], *, place: int) -> BadInput | None:
    for value in values:
        raw = value.encode(errors="surrogateescape")
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            return invalid_utf8(error, place=place, where=f"line {line} of a field")
    return None
