"""Parquet files: a part is some rows of one row group, with only the requested columns."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any

import pyarrow
import pyarrow.parquet

from common.remote import RemoteError, is_remote, open_remote
from data_prep.reading.documents import BadInput, document_of
from data_prep.reading.fields import Fields, proposal
from data_prep.reading.parts import InputFile, Item, Part

_SLICE_BYTES = 8 << 20
# Each slice may decompress its whole row group again, so there are few of them.
_MAX_SLICES = 16
_BROKEN = (pyarrow.ArrowException, OSError)


class Parquet:
    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        try:
            metadata = _open(file).metadata
        except RemoteError:
            raise
        except _BROKEN as error:
            yield Part(file, 0, 0, data=_broken(error, place=0))
            return
        row = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            slices = min(_MAX_SLICES, 1 + group.total_byte_size // _SLICE_BYTES)
            step = max(1, -(-group.num_rows // slices))
            share = file.num_bytes / max(1, metadata.num_rows)
            for begin in range(row, row + group.num_rows, step):
                end = min(begin + step, row + group.num_rows)
                if begin >= start:
                    yield Part(file, begin, end, num_bytes=int(share * (end - begin)))
            row += group.num_rows

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        if isinstance(part.data, BadInput):
            yield part.data
            return
        place = part.start
        try:
            file = _open(part.file)
            columns = tuple(fields.roots(file.schema_arrow.names))
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                detail = f"columns: {', '.join(file.schema_arrow.names[:8])}"
                detail += proposal(_example(file.schema_arrow), missing[0], wanted=fields)
                yield BadInput(place, reason=f"missing column {missing[0]!r}", detail=detail)
                return
            doubled = [name for name in columns if file.schema_arrow.names.count(name) > 1]
            if doubled:
                detail = "rename one, or name another with --field"
                yield BadInput(place, reason=f"several columns {doubled[0]!r}", detail=detail)
                return
            first_rows = _first_rows(file)
            group = bisect_right(first_rows, part.start) - 1
            table = _read_group(part.file, group, columns)
            rows = table.slice(part.start - first_rows[group], part.end - part.start)
            for row in range(rows.num_rows):
                place = part.start + row
                values = {
                    name: _value(rows.column(name)[row], place=place, columns=columns)
                    for name in columns
                }
                yield document_of(values, place=place, wanted=fields)
        except RemoteError:
            raise
        except _BROKEN as error:
            yield _broken(error, place=place)


def _example(schema: pyarrow.Schema) -> dict[str, Any]:
    """A record of these types, without what is in it."""
    return {field.name: _example_of(field.type) for field in schema}


def _example_of(kind: pyarrow.DataType) -> Any:
    types = pyarrow.types
    if types.is_list(kind) or types.is_large_list(kind):
        return [_example_of(kind.value_type)]
    if types.is_struct(kind):
        return {}
    if types.is_integer(kind):
        return 0
    return "" if types.is_string(kind) or types.is_large_string(kind) else None


def _value(scalar: pyarrow.Scalar, *, place: int, columns: tuple[str, ...]) -> Any:
    try:
        if pyarrow.types.is_list(scalar.type) and pyarrow.types.is_integer(scalar.type.value_type):
            return _integers(scalar)
        return scalar.as_py()
    except UnicodeDecodeError as error:  # Arrow writers may skip the UTF-8 check
        return BadInput(place, reason="invalid UTF-8", detail=error.reason)


def _integers(scalar: pyarrow.Scalar) -> Any:
    """A list of integers without a Python object for each."""
    values = scalar.values
    if values is None or values.null_count:
        return scalar.as_py()
    return values.to_numpy(zero_copy_only=False)


def _broken(error: Exception, *, place: int) -> BadInput:
    return BadInput(place, reason="broken Parquet", detail=str(error).splitlines()[0])


def _first_rows(file: pyarrow.parquet.ParquetFile) -> list[int]:
    groups = range(file.metadata.num_row_groups)
    return list(accumulate((file.metadata.row_group(g).num_rows for g in groups), initial=0))


# Parts of a row group mostly go to the process that has already read it.
@lru_cache(maxsize=1)
def _read_group(file: InputFile, group: int, columns: tuple[str, ...]) -> pyarrow.Table:
    return _open(file).read_row_group(group, columns=list(columns))


@lru_cache(maxsize=4)
def _open(file: InputFile) -> pyarrow.parquet.ParquetFile:
    is_far = is_remote(file.path)
    return pyarrow.parquet.ParquetFile(open_remote(file.path) if is_far else file.path)
