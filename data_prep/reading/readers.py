"""Documents out of JSONL, Parquet and text files; whatever is wrong is named by file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from data_prep.reading.documents import (
    BadInput,
    Document,
    Intake,
    ReadOptions,
    checked_value,
    invalid_utf8,
    text_document,
)
from data_prep.reading.sources import InputFile
from data_prep.reading.zstd_file import open_zstd

NUM_BAD_LISTED = 10
_BROKEN_COMPRESSION = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


def read_documents(
    files: Iterable[InputFile], *, options: ReadOptions, intake: Intake
) -> Iterator[Document]:
    """Every document that has content. Empty ones are counted and passed over, never an error:
    source trees are full of empty `__init__.py`. Bad ones raise, or are counted on `skip`.
    """
    bytes_of_earlier_files = 0
    for file in files:
        for item in _read_file(file, options=options, intake=intake):
            intake.num_documents += 1
            if isinstance(item, BadInput):
                if options.on_error == "fail":
                    raise item
                intake.bad_by_reason[item.reason] += 1
                intake.num_tokens_left_out += item.num_tokens
                if len(intake.first_bad) < NUM_BAD_LISTED:
                    intake.first_bad.append(str(item))
            elif _is_empty(item):
                intake.num_empty += 1
            else:
                yield item
        bytes_of_earlier_files += file.num_bytes
        intake.num_bytes_read = bytes_of_earlier_files


def _is_empty(document: Document) -> bool:
    content = document.content
    return not content.strip() if isinstance(content, str) else len(content) == 0


def _read_file(
    file: InputFile, *, options: ReadOptions, intake: Intake
) -> Iterator[Document | BadInput]:
    if file.kind == "parquet":
        # pyarrow takes half a second to import; most builds never need it.
        from data_prep.reading.parquet import read_parquet

        for row, value in read_parquet(file.path, column=options.key):
            yield checked_value(value, where=f"{file.path}:row {row}", options=options)
        return
    with file.path.open("rb") as raw:
        stream = _decompressed(file.path, raw)
        try:
            if file.kind == "text":
                yield text_document(stream.read(), where=str(file.path))
                return
            before = intake.num_bytes_read
            for number, line in enumerate(stream, start=1):
                intake.num_bytes_read = before + raw.tell()
                yield _json_document(line, where=f"{file.path}:{number}", options=options)
        except _BROKEN_COMPRESSION as error:
            yield BadInput(str(file.path), reason="broken compression", detail=str(error))


def _decompressed(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb"))
    return open_zstd(raw) if path.suffix.lower() == ".zst" else raw


def _json_document(line: bytes, *, where: str, options: ReadOptions) -> Document | BadInput:
    if not line.strip():
        return Document("", num_bytes=0)
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return invalid_utf8(error, where=where)
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at column {error.colno}"
        return BadInput(where, reason="broken JSON", detail=detail)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        return BadInput(where, reason="broken JSON", detail=str(error))
    if not isinstance(record, dict):
        detail = f"expected an object with {options.key!r}, found {type(record).__name__}"
        return BadInput(where, reason="not a record", detail=detail)
    if options.key not in record:
        found = ", ".join(sorted(record)[:8]) or "none"
        return BadInput(where, reason=f"missing key {options.key!r}", detail=f"keys: {found}")
    return checked_value(record[options.key], where=where, options=options)
