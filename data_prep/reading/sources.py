"""Resolves every --input to files by domain, in the same order on every machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath

from common.remote import is_remote, iter_files, object_bytes
from data_prep.manifest import DOMAIN_PATTERN, Source
from data_prep.reading.changes import modified_ns
from data_prep.reading.fields import Fields
from data_prep.reading.file_list import FileList
from data_prep.reading.folders import Globs, Met, walk_folder
from data_prep.reading.kinds import kind_in_folder, kind_of, kind_of_named, known_suffixes
from data_prep.reading.parts import InputFile, Kind

HUB_PREFIX = "hf:"
DEFAULT_DOMAIN = "main"
# Through a memory map, so only on this machine.
_MAPPED: frozenset[Kind] = frozenset({"npy", "megatron", "arrow"})


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
            f"{known_suffixes(ids=fields.kind == 'ids')}{_suffix_hint(globs.include)}"
        )
    return source


def _suffix_hint(include: Sequence[str]) -> str:
    """`--include txt` names a file that is called txt."""
    bare = [name for name in include if re.fullmatch(r"\.?\w+", name)]
    if not bare:
        return ""
    return f"; --include {bare[0]} is a whole name: files that end so are '*.{bare[0].lstrip('.')}'"


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
    yield _input_file(text, kind=kind_of_named(text, globs=globs, fields=fields), globs=globs)


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
            kind, why_not = kind_in_folder(met.text, globs=globs, fields=fields)
            yield (
                Met(met.text, why_not) if why_not else _input_file(met.text, kind=kind, globs=globs)
            )


def _files_in_store(url: str, *, globs: Globs, fields: Fields) -> Iterator[InputFile | Met]:
    """An object of a store, or all below it, by the rules of a folder."""
    file = None
    is_object = not url.endswith("/") and object_bytes(url) > 0
    for file in iter_files(url):
        inside = PurePosixPath(file.url.removeprefix(url.rstrip("/")).lstrip("/"))
        if not inside.name:  # the object itself
            if kind_of(PurePath(url).name) in _MAPPED:
                raise ValueError(f"--input {url}: is read through a memory map; copy it here first")
            kind = kind_of_named(url, globs=globs, fields=fields)
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
                kind, why_not = kind_in_folder(file.url, globs=globs, fields=fields)
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
