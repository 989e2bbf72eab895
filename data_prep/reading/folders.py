"""Selects the files of a folder to read: ignore files, globs and binary suffixes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pathspec

# In a folder every file is text except these suffixes; hidden names are skipped too.
IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
IGNORE_FILE = ".gitignore"
_BINARY = """
    a bin bmp class dll docx dylib exe gif gz ico jar jpeg jpg lock mo mp3 mp4 npz o otf pdf
    pickle pkl png pptx pt pyc pyd pyo safetensors so sqlite svg tar ttf wasm wav webp whl woff
    woff2 xlsx xz zip zst
"""
_COMPRESSED = tuple(
    f".{inner}.{outer}" for inner in ("txt", "md", "jsonl", "ndjson") for outer in ("gz", "zst")
)
IGNORED_SUFFIXES = frozenset(f".{name}" for name in _BINARY.split())


@dataclass(frozen=True)
class Globs:
    """Which files of a folder are read. A pattern with a slash matches the path inside the
    folder, one without a file's name and, for `exclude`, any folder's name too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    heed_ignore_files: bool = True
    """Skip what a .gitignore on the way down excludes, as git would."""

    def keep_folder(self, relative: str) -> bool:
        name = relative.rsplit("/", 1)[-1]
        ignored = name.startswith(".") or name in IGNORED_FOLDERS
        return not ignored and not _matches(relative, patterns=self.exclude)

    def keep_file(self, relative: str) -> bool:
        if _matches(relative, patterns=self.exclude):
            return False
        if self.include:
            return _matches(relative, patterns=self.include)
        name = relative.rsplit("/", 1)[-1].lower()
        is_text = Path(name).suffix not in IGNORED_SUFFIXES or name.endswith(_COMPRESSED)
        return not name.startswith(".") and is_text

    def names(self, file_name: str) -> bool:
        """Whether `include` names this very file."""
        return _matches(file_name, patterns=self.include)


def _matches(relative: str, *, patterns: Sequence[str]) -> bool:
    name = relative.rsplit("/", 1)[-1]
    return any(fnmatchcase(relative if "/" in p else name, p) for p in patterns)


def walk_folder(root: Path, *, globs: Globs) -> Iterator[Path]:
    """The files to read, folders and names sorted."""
    ignore_of: dict[str, list[tuple[str, pathspec.GitIgnoreSpec]]] = {}
    for folder, folder_names, file_names in os.walk(root, onerror=_fail):
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        parent = prefix.rstrip("/").rpartition("/")[0]
        ignores = list(ignore_of.get(parent, [])) if prefix else []
        if globs.heed_ignore_files and IGNORE_FILE in file_names:
            ignores.append((prefix, _ignore_file(Path(folder, IGNORE_FILE))))
        ignore_of[prefix.rstrip("/")] = ignores
        # Sorted in place: os.walk descends in this order and into nothing else.
        folder_names[:] = sorted(
            name
            for name in folder_names
            if globs.keep_folder(prefix + name) and not _ignored(f"{prefix}{name}/", ignores)
        )
        for name in sorted(file_names):
            path = Path(folder, name)
            relative = prefix + name
            if globs.keep_file(relative) and not _ignored(relative, ignores) and path.is_file():
                yield path


def _ignore_file(path: Path) -> pathspec.GitIgnoreSpec:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; fix it or add --no-ignore-files") from None


def _ignored(relative: str, ignores: list[tuple[str, pathspec.GitIgnoreSpec]]) -> bool:
    """What the deepest ignore file that matches says."""
    for prefix, spec in reversed(ignores):
        verdict = spec.check_file(relative.removeprefix(prefix)).include
        if verdict is not None:
            return verdict
    return False


def _fail(error: OSError) -> None:
    raise error  # os.walk would silently skip an unreadable folder
