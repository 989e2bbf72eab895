"""Resolves every --input to files by domain, in the same order on every machine."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath

from common.remote import is_remote, iter_files, object_bytes
from data_prep.manifest import DOMAIN_PATTERN, Source
from data_prep.reading.changes import modified_ns
from data_prep.reading.compressed import COMPRESSION_SUFFIXES
from data_prep.reading.extracted import is_extracted, refuse_missing_extractor
from data_prep.reading.fields import DocumentKind, Fields
from data_prep.reading.file_list import FileList
from data_prep.reading.folders import (
    ARCHIVES,
    CONVERT,
    UNPACK,
    Globs,
    Met,
    archive_suffix,
    suffix_of,
    walk_folder,
)
from data_prep.reading.json_file import holds_lines
from data_prep.reading.parts import InputFile, Kind

HUB_PREFIX = "hf:"
DEFAULT_DOMAIN = "main"
KIND_OF_SUFFIX: dict[str, Kind] = {
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
# Through a memory map, so only on this machine.
_MAPPED: frozenset[Kind] = frozenset({"npy", "megatron", "arrow"})
_RECORDS: frozenset[Kind] = frozenset({"lines", "stream", "json", "parquet", "arrow"})
# Other files in a folder cannot hold the requested kind.
_KINDS_OF_A_FOLDER: dict[DocumentKind, frozenset[Kind]] = {
    "text": _RECORDS | {"text", "archive", "extracted", "pages"},
    "chat": _RECORDS,
    "ids": _RECORDS | _IDS_ONLY,
}


@dataclass(frozen=True)
class DomainInput:
    """A named part of the corpus: what is read for it, and which fields make its documents."""

    name: str
    fields: Fields
    files: FileList
    sources: tuple[Source, ...]

    @property
    def num_bytes(self) -> int:
        return self.files.num_bytes


def find_domains(
    inputs: Sequence[str | Path], *, globs: Globs, fields_of: Mapping[str, Fields], default: Fields
) -> list[DomainInput]:
    """Domains in the order in which they are first named, files of folders sorted.

    Args:
        inputs: `PATH` or `NAME=PATH`; without a name the domain is `main`.
        fields_of: fields of individual domains; the others use `default`.
    """
    paths: dict[str, list[str]] = {}
    for text in map(str, inputs):
        name, path = split_name(text)
        paths.setdefault(name, []).append(path)
    unknown = [name for name in fields_of if name not in paths]
    if unknown:
        raise ValueError(f"--field {unknown[0]}.…: no such domain; there are {', '.join(paths)}")
    domains: list[DomainInput] = []
    number = 0
    for name, own in paths.items():
        fields = fields_of.get(name, default)
        files = FileList(first_number=number)
        sources = [_read_input(path, globs=globs, fields=fields, into=files) for path in own]
        number = files.next_number
        domains.append(DomainInput(name, fields, files, tuple(sources)))
    return domains


def split_name(text: str) -> tuple[str, str]:
    """Domain and path of an --input; a path that exists as given has no domain."""
    name, equals, path = text.partition("=")
    if not equals or is_remote(text) or Path(text).exists():
        return DEFAULT_DOMAIN, text
    if not re.match(DOMAIN_PATTERN, name):
        raise ValueError(
            f"--input {text}: domain {name!r}: use only letters, digits, '_', '-' and '.'"
        )
    return name, path


def _read_input(path: str, *, globs: Globs, fields: Fields, into: FileList) -> Source:
    """Append the files of one input; the record of what is read and what is left out."""
    num_before, bytes_before = len(into), into.num_bytes
    files_left_out: Counter[str] = Counter()
    folders_left_out: Counter[str] = Counter()
    for item in _files_of(path, globs=globs, fields=fields):
        if isinstance(item, InputFile):
            into.append(item)
        else:
            (folders_left_out if item.is_folder else files_left_out)[item.why_not] += 1
    source = Source(
        path=path,
        num_files=len(into) - num_before,
        num_bytes=into.num_bytes - bytes_before,
        files_left_out=dict(sorted(files_left_out.items())),
        folders_left_out=dict(sorted(folders_left_out.items())),
    )
    if not source.num_files:
        left_out = [*source.files_left_out, *(f"folder {why}" for why in source.folders_left_out)]
        why = f"; left out: {', '.join(left_out)}" if left_out else ""
        raise ValueError(
            f"--input {path}: contains no file to read{why}; {fields.kind} is read from "
            f"{_known(ids=fields.kind == 'ids')}{_suffix_hint(globs.include)}"
        )
    return source


def _suffix_hint(include: Sequence[str]) -> str:
    """`--include txt` names a file that is called txt."""
    bare = [name for name in include if re.fullmatch(r"\.?\w+", name)]
    if not bare:
        return ""
    return f"; files that end in .{bare[0].lstrip('.')} are --include '*.{bare[0].lstrip('.')}'"


def kind_of(name: str) -> Kind | None:
    """The kind of a file by its name's suffix: `.jsonl`, `.jsonl.gz`, `.txt.zst`, `.tar`, ..."""
    if archive_suffix(name) in ARCHIVES:
        return "archive"
    suffix = suffix_of(name).lower()
    if suffix in COMPRESSION_SUFFIXES:
        inner = KIND_OF_SUFFIX.get(suffix_of(name[: -len(suffix)]).lower())
        if inner == "lines":
            return "stream"
        return inner if inner in ("json", "table", "text") else None
    return KIND_OF_SUFFIX.get(suffix)


def _files_of(text: str, *, globs: Globs, fields: Fields) -> Iterator[InputFile | Met]:
    if is_remote(text):
        yield from _files_in_store(text, globs=globs, fields=fields)
        return
    if text.startswith(HUB_PREFIX):
        yield InputFile(text, "hub", 0)
        return
    path = Path(text)
    if path.is_dir():
        yield from _files_in_folder(path, globs=globs, fields=fields)
        return
    if path.suffix == ".bin" and path.with_suffix(".idx").is_file():
        path = path.with_suffix(".idx")
    if not path.is_file():
        raise ValueError(f"--input {path}: no such file or folder")
    text = str(path)
    yield _input_file(text, kind=_kind_of_named(text, globs=globs, fields=fields), globs=globs)


def _kind_of_named(text: str, *, globs: Globs, fields: Fields) -> Kind:
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
            f"--input {text}: unknown suffix {path.suffix!r}; known: {_known(ids=True)} (text "
            f"and JSON also with {', '.join(COMPRESSION_SUFFIXES)}). {_advice(path)}"
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
        if Path(path.stem).suffix.lower() in KIND_OF_SUFFIX:
            return "Decompress it"
        names = " or ".join(f"{path.stem}{inner}{path.suffix}" for inner in (".jsonl", ".txt"))
        return f"Rename it after what it holds, such as {names}"
    if converter := CONVERT.get(path.suffix.lower()):
        return f"Convert it with `{converter} {shlex.quote(str(path))}`"
    if is_extracted(path.name):
        return "To read its text add --extract file, or --extract page"
    or_folder = "" if Globs().why_not_file(path.name) else ", or give its folder"
    return f"To read it as text add --include {path.name!r}{or_folder}"


def _files_in_folder(folder: Path, *, globs: Globs, fields: Fields) -> Iterator[InputFile | Met]:
    for met in walk_folder(folder, globs=globs):
        if met.is_folder and not met.why_not:
            num_bytes = sum(file.stat().st_size for file in met.path.glob("*.arrow"))
            yield InputFile(met.text, "arrow", num_bytes, modified_ns(met.text, kind="arrow"))
        elif met.why_not:
            # The .bin of a pair is read with its .idx.
            is_pair = met.text.endswith(".bin") and met.path.with_suffix(".idx").is_file()
            if not (is_pair and fields.kind == "ids"):
                yield met
        else:
            kind, why_not = _kind_in_folder(met.text, globs=globs, fields=fields)
            yield (
                Met(met.text, why_not) if why_not else _input_file(met.text, kind=kind, globs=globs)
            )


def _kind_in_folder(text: str, *, globs: Globs, fields: Fields) -> tuple[Kind, str]:
    """The kind of a file of a folder, and why it is not read, if it cannot hold what is wanted."""
    name = text.rsplit("/", 1)[-1]
    kind = _by_content(text, kind=kind_of(name) or "text", globs=globs)
    kind = "text" if kind == "table" else kind  # --include has named it
    if kind in _KINDS_OF_A_FOLDER[fields.kind]:
        return kind, ""
    what = "ids" if kind in _IDS_ONLY else "text"
    return kind, f"{suffix_of(name) or 'no suffix'} (holds {what})"


def _files_in_store(url: str, *, globs: Globs, fields: Fields) -> Iterator[InputFile | Met]:
    """An object of a store, or all below it, by the rules of a folder."""
    file = None
    is_object = not url.endswith("/") and object_bytes(url) > 0
    for file in iter_files(url):
        inside = PurePosixPath(file.url.removeprefix(url.rstrip("/")).lstrip("/"))
        if not inside.name:  # the object itself
            if kind_of(PurePath(url).name) in _MAPPED:
                raise ValueError(f"--input {url}: is read through a memory map; copy it here first")
            kind = _kind_of_named(url, globs=globs, fields=fields)
        elif is_object:  # stores list what is below, without it
            raise ValueError(
                f"--input {url}: is an object, and others are below it, as {file.url}; write "
                f"{url}/ for these, or copy it to another name"
            )
        else:
            why_not = globs.why_not_path(inside)
            kind = kind_of(inside.name) or "text"
            if not why_not and kind in _MAPPED:
                why_not = f"{inside.suffix} (memory-mapped; copy it here first)"
            if not why_not:
                kind, why_not = _kind_in_folder(file.url, globs=globs, fields=fields)
            if why_not:
                yield Met(file.url, why_not)
                continue
        members = _member_globs(inside.name, kind=kind, globs=globs)
        yield InputFile(file.url, kind, file.num_bytes, file.version, members=members)
    if file is None:
        raise ValueError(f"--input {url}: there is no such object, and none below it")


def _member_globs(name: str, *, kind: Kind, globs: Globs) -> Globs | None:
    """Which members of an archive are read; a pattern that names the archive does not name them."""
    if kind != "archive":
        return None
    return replace(globs, include=()) if globs.names(name) else globs


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


def _input_file(text: str, *, kind: Kind, globs: Globs) -> InputFile:
    status = Path(text).stat()
    num_bytes, changed = status.st_size, status.st_mtime_ns
    if kind == "megatron" and Path(text).with_suffix(".bin").is_file():
        num_bytes += Path(text).with_suffix(".bin").stat().st_size
        changed = modified_ns(text, kind=kind)
    name = text.rsplit("/", 1)[-1]
    return InputFile(
        text, kind, num_bytes, changed, members=_member_globs(name, kind=kind, globs=globs)
    )


def _known(*, ids: bool) -> str:
    known = [s for s, kind in KIND_OF_SUFFIX.items() if ids or kind not in _IDS_ONLY]
    return " ".join([*known, ".tar .zip"])
