"""Values of one column of a Parquet file, row by row, without reading the other columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from data_prep.reading.documents import BadInput

_BATCH_ROWS = 1024


def read_parquet(path: Path, *, column: str) -> Iterator[tuple[int, object]]:
    """Yield (row from 1, value); a value that cannot be read comes as a `BadInput`."""
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                detail = f"columns: {', '.join(names[:8])}"
                reason = f"missing column {column!r}"
                yield 0, BadInput(str(path), reason=reason, detail=detail)
                return
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[column]):
                for scalar in batch.column(0):
                    row += 1
                    yield row, _value(scalar, where=f"{path}:row {row}")
    except (pyarrow.ArrowException, OSError) as error:
        detail = str(error).splitlines()[0]
        yield row + 1, BadInput(f"{path}:row {row + 1}", reason="broken Parquet", detail=detail)


def _value(scalar: pyarrow.Scalar, *, where: str) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:  # Arrow's writers may skip the check of UTF-8
        return BadInput(where, reason="invalid UTF-8", detail=error.reason)
