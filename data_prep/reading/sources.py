"""Resolves every --input to files by domain, in the same order on every machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.manifest import DOMAIN_PATTERN, Source
from data_prep.reading.documents import DocumentKind, Fields
from data_prep.reading.folders import Globs, walk_folder
from data_prep.reading.parts import InputFile, Kind

HUB_PREFIX = "hf:"
DEFAULT_DOMAIN = "main"
COMPRESSION_SUFFIXES = (".gz", ".zst")
KIND_OF_SUFFIX: dict[str, Kind] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".npy": "npy",
    ".idx": "megatron",
    ".txt": "text",
    ".md": "text",
}
_IDS_ONLY: frozenset[Kind] = frozenset({"npy", "megatron"})
_RECORDS: frozenset[Kind] = frozenset({"lines", "stream", "parquet", "arrow"})
# Other files in a folder cannot hold the requested kind.
_KINDS_OF_A_FOLDER: dict[DocumentKind, frozenset[Kind]] = {
    "text": _RECORDS | {"text"},
    "chat": _RECORDS,
    "ids": _RECORDS | _IDS_ONLY,
}


@dataclass(frozen=True)
class DomainInput:
    """A named part of the corpus: what is read for it, and which fields make its documents."""

    name: str
    fields: Fields
    files: tuple[InputFile, ...]
    sources: tuple[Source, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


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
        files: list[InputFile] = []
        sources: list[Source] = []
        for path in own:
            found = [
                replace(file, number=number + i)
                for i, file in enumerate(_files_of(path, globs=globs, fields=fields))
            ]
            if not found:
                raise ValueError(f"--input {path}: contains no file to read{_why(fields)}")
            number += len(found)
            files += found
            num_bytes = sum(file.num_bytes for file in found)
            sources.append(Source(path=path, num_files=len(found), num_bytes=num_bytes))
        domains.append(DomainInput(name, fields, tuple(files), tuple(sources)))
    return domains


def split_name(text: str) -> tuple[str, str]:
    """Domain and path of an --input; a path that exists as given has no domain."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return DEFAULT_DOMAIN, text
    if not re.match(DOMAIN_PATTERN, name):
        raise ValueError(
            f"--input {text}: domain {name!r}: use only letters, digits, '_', '-' and '.'"
        )
    return name, path


def _why(fields: Fields) -> str:
    if fields.kind != "text":
        return f": {fields.kind} is read from {_known(ids=fields.kind == 'ids')}"
    return " after --include, --exclude and ignore files"


def kind_of(path: Path) -> Kind | None:
    """The kind of a file by its suffix: `.jsonl`, `.jsonl.gz`, `.txt.zst`, ..."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSION_SUFFIXES:
        inner = KIND_OF_SUFFIX.get(Path(path.stem).suffix.lower())
        return "stream" if inner == "lines" else inner if inner == "text" else None
    return KIND_OF_SUFFIX.get(suffix)


def _files_of(text: str, *, globs: Globs, fields: Fields) -> Iterator[InputFile]:
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
    kind = kind_of(path)
    if kind is None and not globs.names(path.name):
        raise ValueError(
            f"--input {path}: unknown suffix {path.suffix!r}; known: {_known(ids=True)} (text "
            f"and JSONL also with .gz or .zst). To read it as text add --include {path.name!r}, "
            "or give its folder"
        )
    yield _input_file(path, kind=kind or "text", fields=fields)


def _files_in_folder(folder: Path, *, globs: Globs, fields: Fields) -> Iterator[InputFile]:
    # Imported here: the reader knows datasets' own layout, and these checks load nothing heavy.
    from data_prep.reading.arrow import is_saved_dataset, splits_of_saved_dict

    if is_saved_dataset(folder):
        num_bytes = sum(file.stat().st_size for file in folder.glob("*.arrow"))
        changed = modified_ns(str(folder), kind="arrow")
        yield InputFile(str(folder), "arrow", num_bytes, changed)
    elif splits := splits_of_saved_dict(folder):
        raise ValueError(
            f"--input {folder}: holds the splits {', '.join(splits)}; choose one, such as "
            f"{folder}/{splits[0]}"
        )
    else:
        for path in walk_folder(folder, globs=globs):
            kind = kind_of(path) or "text"
            if kind in _KINDS_OF_A_FOLDER[fields.kind]:
                yield _input_file(path, kind=kind, fields=fields)


def _input_file(path: Path, *, kind: Kind, fields: Fields) -> InputFile:
    if kind in _IDS_ONLY and fields.kind != "ids":
        raise ValueError(f"--input {path}: holds ids, not text; add --ids-key input_ids")
    if kind == "text" and fields.kind != "text":
        raise ValueError(f"--input {path}: holds text, not records with {fields.as_dict()}")
    num_bytes = path.stat().st_size
    if kind == "megatron" and path.with_suffix(".bin").is_file():
        num_bytes += path.with_suffix(".bin").stat().st_size
    return InputFile(str(path), kind, num_bytes, modified_ns(str(path), kind=kind))


def modified_ns(path: str, *, kind: Kind) -> int:
    """When an input was last changed, in nanoseconds; -1 when it is gone."""
    file = Path(path)
    if file.is_dir():
        files = [file / "state.json", *file.glob("*.arrow")]
    elif kind == "megatron":
        files = [file, file.with_suffix(".bin")]
    else:
        files = [file]
    times = [f.stat().st_mtime_ns for f in files if f.exists()]
    return max(times, default=-1)


def _known(*, ids: bool) -> str:
    return " ".join(s for s, kind in KIND_OF_SUFFIX.items() if ids or kind not in _IDS_ONLY)
