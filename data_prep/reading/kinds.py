"""What a file holds, by its name and its content: lines, a table, text, an archive, ids."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePath

from data_prep.reading.compressed import COMPRESSION_SUFFIXES
from data_prep.reading.extracted import is_extracted, refuse_missing_extractor
from data_prep.reading.fields import DocumentKind, Fields
from data_prep.reading.folders import (
    ARCHIVES,
    CONVERT,
    UNPACK,
    Globs,
    archive_suffix,
    suffix_of,
)
from data_prep.reading.json_file import holds_lines
from data_prep.reading.parts import Kind

_KIND_OF_SUFFIX: dict[str, Kind] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".npy": "npy",
    ".idx": "megatron",
    ".txt": "text",
    ".md": "text",
}
_IDS_ONLY: frozenset[Kind] = frozenset({"npy", "megatron"})
_RECORDS: frozenset[Kind] = frozenset({"lines", "stream", "json", "parquet", "arrow"})
# Other files in a folder cannot hold the requested kind.
_KINDS_OF_A_FOLDER: dict[DocumentKind, frozenset[Kind]] = {
    "text": _RECORDS | {"text", "archive", "extracted", "pages"},
    "chat": _RECORDS,
    "ids": _RECORDS | _IDS_ONLY,
}


def kind_of(name: str) -> Kind | None:
    """The kind of a file by its name's suffix: `.jsonl`, `.jsonl.gz`, `.txt.zst`, `.tar`, ..."""
    if archive_suffix(name) in ARCHIVES:
        return "archive"
    suffix = suffix_of(name).lower()
    if suffix in COMPRESSION_SUFFIXES:
        inner = _KIND_OF_SUFFIX.get(suffix_of(name[: -len(suffix)]).lower())
        if inner == "lines":
            return "stream"
        return inner if inner in ("json", "table", "text") else None
    return _KIND_OF_SUFFIX.get(suffix)


def kind_of_named(text: str, *, globs: Globs, fields: Fields) -> Kind:
    """The kind of a file that --input names by itself."""
    path = PurePath(text)
    suffix = archive_suffix(path.name)
    if suffix and suffix not in ARCHIVES:
        raise ValueError(
            f"--input {text}: {suffix} is not supported; unpack it with `{UNPACK[suffix]} "
            f"{shlex.quote(text)}` and read what comes out"
        )
    kind = kind_of(path.name)
    if kind == "table" and globs.names(path.name):
        kind = "text"
    is_known = kind is not None or (globs.extract and is_extracted(text))
    if not is_known and not globs.names(path.name):
        raise ValueError(
            f"--input {text}: unknown suffix {path.suffix!r}; known: {known_suffixes(ids=True)} "
            f"(text and JSON also with {', '.join(COMPRESSION_SUFFIXES)}). {_advice(path)}"
        )
    kind = _by_content(text, kind=kind or "text", globs=globs)
    if kind in _IDS_ONLY and fields.kind != "ids":
        raise ValueError(f"--input {text}: holds ids, not text; add --ids-key input_ids")
    if kind == "table" and fields.kind == "ids":
        raise ValueError(f"--input {text}: a table holds text, no lists of ids; use JSON lines")
    if kind not in _KINDS_OF_A_FOLDER[fields.kind] | {"table"}:
        what = "files, of which only text is read" if kind == "archive" else "text"
        raise ValueError(f"--input {text}: holds {what}, not records with {fields.as_dict()}")
    return kind


def _advice(path: PurePath) -> str:
    """How a file of an unknown suffix can be read."""
    if path.suffix.lower() in COMPRESSION_SUFFIXES:
        if Path(path.stem).suffix.lower() in _KIND_OF_SUFFIX:
            return "Decompress it"
        names = " or ".join(f"{path.stem}{inner}{path.suffix}" for inner in (".jsonl", ".txt"))
        return f"Rename it after what it holds, such as {names}"
    if converter := CONVERT.get(path.suffix.lower()):
        return f"Convert it with `{converter} {shlex.quote(str(path))}`"
    if is_extracted(path.name):
        return "To read its text add --extract file, or --extract page"
    or_folder = "" if Globs().why_not_file(path.name) else ", or give its folder"
    return f"To read it as text add --include {path.name!r}{or_folder}"


def kind_in_folder(text: str, *, globs: Globs, fields: Fields) -> tuple[Kind, str]:
    """The kind of a file of a folder, and why it is not read, if it cannot hold what is wanted."""
    name = text.rsplit("/", 1)[-1]
    kind = _by_content(text, kind=kind_of(name) or "text", globs=globs)
    kind = "text" if kind == "table" else kind  # --include has named it
    if kind in _KINDS_OF_A_FOLDER[fields.kind]:
        return kind, ""
    what = "ids" if kind in _IDS_ONLY else "text"
    return kind, f"{suffix_of(name) or 'no suffix'} (holds {what})"


def _by_content(path: str, *, kind: Kind, globs: Globs) -> Kind:
    """What a .json file holds: text if told so, records line by line, or other JSON.

    A file whose text is extracted, if that is wanted, whatever else its suffix means.
    """
    if globs.extract and is_extracted(path):
        refuse_missing_extractor(PurePath(path).suffix.lower())
        return "pages" if globs.extract == "page" else "extracted"
    if kind != "json":
        return kind
    if globs.json_as_text:
        return "text"
    if not holds_lines(path):
        return "json"
    return "stream" if PurePath(path).suffix.lower() in COMPRESSION_SUFFIXES else "lines"


def known_suffixes(*, ids: bool) -> str:
    """For messages: all that are read, or those that hold text."""
    known = [s for s, kind in _KIND_OF_SUFFIX.items() if ids or kind not in _IDS_ONLY]
    return " ".join([*known, ".tar .zip"])
