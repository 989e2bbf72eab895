"""The files behind every --input, in an order that is the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from data_prep.manifest import Source

Kind = Literal["jsonl", "parquet", "text"]

KIND_OF_SUFFIX: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
COMPRESSION_SUFFIXES = (".gz", ".zst")

# In a folder everything is text except what cannot be; hidden names are left out as well.
IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
_BINARY = """
    a bin bmp class dll docx dylib exe gif gz ico jar jpeg jpg lock mo mp3 mp4 npy npz o otf pdf
    pickle pkl png pptx pt pyc pyd pyo safetensors so sqlite svg tar ttf wasm wav webp whl woff
    woff2 xlsx xz zip zst
"""
IGNORED_SUFFIXES = frozenset(f".{name}" for name in _BINARY.split())


@dataclass(frozen=True)
class InputFile:
    path: Path
    kind: Kind
    num_bytes: int


@dataclass(frozen=True)
class Globs:
    """Which files of a folder count. A pattern with a slash is held against the path inside the
    folder, one without against a file's name, and for `exclude` against any folder's name too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def keep_folder(self, relative: str) -> bool:
        name = relative.rsplit("/", 1)[-1]
        ignored = name.startswith(".") or name in IGNORED_FOLDERS
        return not ignored and not _matches(relative, patterns=self.exclude)

    def keep_file(self, relative: str) -> bool:
        if _matches(relative, patterns=self.exclude):
            return False
        if self.include:
            return _matches(relative, patterns=self.include)
        name = relative.rsplit("/", 1)[-1]
        is_data = kind_of(Path(name)) is not None
        return not name.startswith(".") and (is_data or Path(name).suffix not in IGNORED_SUFFIXES)


def _matches(relative: str, *, patterns: Sequence[str]) -> bool:
    name = relative.rsplit("/", 1)[-1]
    return any(fnmatchcase(relative if "/" in p else name, p) for p in patterns)


def kind_of(path: Path) -> Kind | None:
    """What a suffix says of a file: `.jsonl`, `.jsonl.gz`, `.txt.zst`, ..."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSION_SUFFIXES:
        inner = KIND_OF_SUFFIX.get(Path(path.stem).suffix.lower())
        return None if inner == "parquet" else inner
    return KIND_OF_SUFFIX.get(suffix)


def find_files(inputs: Sequence[Path], *, globs: Globs) -> tuple[list[InputFile], list[Source]]:
    """Every file to read, inputs in the order given and folders sorted, and a line per input."""
    files: list[InputFile] = []
    sources: list[Source] = []
    for path in inputs:
        found = list(_files_of(path, globs=globs))
        if not found:
            raise ValueError(f"--input {path}: no file in it is left after --include/--exclude")
        files += found
        num_bytes = sum(file.num_bytes for file in found)
        sources.append(Source(path=str(path), num_files=len(found), num_bytes=num_bytes))
    return files, sources


def _files_of(path: Path, *, globs: Globs) -> Iterator[InputFile]:
    if path.is_dir():
        yield from _walk(path, globs=globs)
        return
    if not path.is_file():
        raise ValueError(f"--input {path}: there is no such file or folder")
    kind = kind_of(path)
    if kind is None and not _matches(path.name, patterns=globs.include):
        known = " ".join(KIND_OF_SUFFIX)
        raise ValueError(
            f"--input {path}: unknown suffix {path.suffix!r}; known are {known} (text and JSONL "
            f"also with .gz or .zst). To read it as text add --include {path.name!r}, or give its "
            "folder"
        )
    yield InputFile(path, kind or "text", path.stat().st_size)


def _walk(root: Path, *, globs: Globs) -> Iterator[InputFile]:
    for folder, folder_names, file_names in os.walk(root, onerror=_fail):
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        # Sorted in place: os.walk descends in this order and into nothing else.
        folder_names[:] = sorted(n for n in folder_names if globs.keep_folder(prefix + n))
        for name in sorted(file_names):
            path = Path(folder, name)
            if globs.keep_file(prefix + name) and path.is_file():
                yield InputFile(path, kind_of(path) or "text", path.stat().st_size)


def _fail(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that it may not read
