"""Maps each kind of input to the module that reads it, loaded on first use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from data_prep.reading.compressed import decompressed, open_input
from data_prep.reading.documents import BadInput
from data_prep.reading.fields import Fields
from data_prep.reading.json_file import JsonRecords
from data_prep.reading.lines import PlainLines, StreamedLines
from data_prep.reading.parts import Format, InputFile, Item, Kind, Part
from data_prep.reading.tables import Tables
from data_prep.reading.text_files import TextFiles
from data_prep.record import printable_path

_UNITS: dict[Kind, str] = {"archive": "member", "pages": "page"}
_OF_JSON = ("missing key", "broken JSON", "not a record")
_JSON_FORMS = (
    ".json files hold an array of objects, one object, or one object per line; --json-as-text "
    "reads them as text, --exclude leaves them out"
)


@lru_cache
def format_of(kind: Kind) -> Format:
    """The reader of a kind; pyarrow and datasets take a second to import, so only if needed."""
    if kind == "lines":
        return PlainLines()
    if kind == "stream":
        return StreamedLines()
    if kind == "json":
        return JsonRecords()
    if kind == "table":
        return Tables()
    if kind == "text":
        return TextFiles()
    if kind == "parquet":
        from data_prep.reading.parquet import Parquet

        return Parquet()
    if kind in ("extracted", "pages"):
        from data_prep.reading.extracted import Extracted

        return Extracted(by_page=kind == "pages")
    if kind == "archive":
        from data_prep.reading.archives import Archives

        return Archives()
    if kind in ("arrow", "hub"):
        from data_prep.reading.arrow import Arrow, Hub

        return Arrow() if kind == "arrow" else Hub()
    from data_prep.reading.token_files import Megatron, Npy

    return Npy() if kind == "npy" else Megatron()


def cut_files(
    files: Iterable[InputFile], *, fields: Fields, start_in_first: int = 0
) -> Iterator[Part]:
    """Parts of all files in order; the first is cut from where an unfinished build stopped."""
    start = start_in_first
    for file in files:
        yield from format_of(file.kind).cut(file, start=start, fields=fields)
        start = 0


def read_part(part: Part, *, fields: Fields) -> Iterator[Item]:
    return format_of(part.file.kind).read(part, fields=fields)


def describe_fault(file: InputFile, fault: BadInput) -> str:
    """What is wrong with a document, where, and what else its file may be."""
    sentence = fault.sentence(name_place(file, fault.place))
    if fault.reason.startswith(("missing key", "missing column")):
        sentence += "; name another with --text-key or --field"
    if ".json" in Path(file.path).suffixes and fault.reason.startswith(_OF_JSON):
        return f"{sentence}; {_JSON_FORMS}"
    return sentence


def name_place(file: InputFile, place: int) -> str:
    """A human-readable place, counted from 1: `docs.jsonl:17`, `docs.parquet:row 17`.

    Lines are counted only here: their numbers are needed only for errors.
    """
    path = printable_path(file.path)
    if file.kind in ("text", "extracted"):
        return path
    if file.kind not in ("lines", "stream"):
        return f"{path}:{_UNITS.get(file.kind, 'row')} {place + 1}"
    line, left = 1, place
    with open_input(file.path) as raw:
        stream = decompressed(file.path, raw)
        while left and (piece := stream.read(min(left, 1 << 20))):
            line += piece.count(b"\n")
            left -= len(piece)
    return f"{path}:{line}"
