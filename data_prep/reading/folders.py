"""Walks a folder: what of it is read, and why the rest is not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from data_prep.reading.arrow import FEATHER_TO_PARQUET, is_saved_dataset, splits_of_saved_dict
from data_prep.reading.compressed import COMPRESSION_SUFFIXES, SHORT_SUFFIXES
from data_prep.reading.extracted import EXTRACTED_SUFFIXES

if TYPE_CHECKING:
    import pathspec

# In a folder every file is text except these suffixes; hidden names are left out too.
IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
IGNORE_FILE = ".gitignore"
_BINARY = """
    a avi avro bin bmp class dll dylib exe feather gif h5 ico jar jpeg jpg lock mo mov mp3 mp4 npz o
    orc otf pickle pkl png pptx pt pyc pyd pyo safetensors so sqlite svg tfrecord ttf wasm wav webp
    whl woff woff2 xlsx
"""
ARCHIVES = (*(f".tar{outer}" for outer in COMPRESSION_SUFFIXES), *SHORT_SUFFIXES, ".tar", ".zip")
UNPACK = {
    ".7z": "7z x",
    ".br": "brotli -d",
    ".lz4": "lz4 -d",
    ".lzma": "xz -d",
    ".rar": "unrar x",
    ".z": "gzip -d",
}
"""By suffix, what makes something readable of an archive that is not read."""
CONVERT = {
    ".feather": FEATHER_TO_PARQUET,
    ".orc": FEATHER_TO_PARQUET.replace("feather", "orc"),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "soffice --headless --convert-to csv"),
    **dict.fromkeys((".doc", ".odt", ".rtf"), "soffice --headless --convert-to docx"),
    ".epub": "pandoc --to=html --output=book.html",
}
"""By suffix, what makes something readable of a document."""
_OTHER_ARCHIVES = tuple(UNPACK)
_ARCHIVE_SUFFIXES = (*ARCHIVES, *_OTHER_ARCHIVES)
_TABLES = "csv tsv"
# A file may lie compressed in a folder if it would be read by this suffix without.
_COMPRESSED = tuple(
    f".{inner}{outer}"
    for inner in ("txt", "md", "json", "jsonl", "ndjson")
    for outer in COMPRESSION_SUFFIXES
)
_WHY_NOT = {
    **{f".{name}": "not text" for name in _BINARY.split()},
    **dict.fromkeys((".docx", ".pdf"), "not text; --extract file reads it"),
    **{suffix: f"an archive; --include '*{suffix}' reads it" for suffix in ARCHIVES},
    **dict.fromkeys(_OTHER_ARCHIVES, "not supported"),
    **{f".{name}": "a table" for name in _TABLES.split()},
    **dict.fromkeys(COMPRESSION_SUFFIXES, "compressed, not text or JSON"),
}


@dataclass(frozen=True)
class Globs:
    """Which files of a folder are read. A pattern with a slash matches the path inside the
    folder, one without a file's name and, for `exclude`, any folder's name too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    heed_ignore_files: bool = True
    """Skip what a .gitignore on the way down excludes, as git would."""
    json_as_text: bool = False
    """A .json file is a text, as in a source tree; else it holds records."""
    extract: Literal["", "file", "page"] = ""
    """Read the text of PDF, HTML and Word files: a document for each file, or page or section."""

    def why_not_folder(self, relative: str) -> str:
        """Why a folder is not entered; "" if it is."""
        name = relative.rsplit("/", 1)[-1]
        if _matches(relative, patterns=self.exclude):
            return "by --exclude"
        if name in IGNORED_FOLDERS:
            return name
        return "hidden" if name.startswith(".") else ""

    def why_not_file(self, relative: str) -> str:
        """Why a file is not read; "" if it is."""
        if _matches(relative, patterns=self.exclude):
            return "by --exclude"
        name = relative.rsplit("/", 1)[-1].lower()
        suffix = archive_suffix(name) or suffix_of(name)
        if self.include:
            if not self.names(relative):
                return "not in --include"
            # Its members would be read as one text, or as no text at all.
            return f"{suffix} ({_WHY_NOT[suffix]})" if suffix in _OTHER_ARCHIVES else ""
        if name.startswith("."):
            return "hidden"
        if self.extract and suffix in EXTRACTED_SUFFIXES:
            return ""
        if name.endswith(_COMPRESSED) or suffix not in _WHY_NOT:
            return ""
        return f"{suffix} ({_WHY_NOT[suffix]})"

    def why_not_path(self, path: PurePosixPath) -> str:
        """The same where only paths are known, as in an archive: its folders count with it."""
        for folder in reversed(path.parents[:-1]):
            if why := self.why_not_folder(str(folder)):
                return f"in a folder: {why}"
        return self.why_not_file(str(path))

    def names(self, relative: str) -> bool:
        """Whether `include` names this very file."""
        return _matches(relative, patterns=self.include)


@dataclass(frozen=True)
class Met:
    """A file or folder met on a walk."""

    text: str  # a path object takes longer than all else, and there may be millions
    why_not: str = ""
    """Why it is left out; "" if it is read."""
    is_folder: bool = False
    """Left out with all that it holds, or read whole by a library."""

    @property
    def path(self) -> Path:
        return Path(self.text)


def suffix_of(name: str) -> str:
    """As of pathlib: ".gz" of "a.txt.gz", "" of ".hidden"."""
    dot = name.rfind(".")
    return name[dot:] if 0 < dot < len(name) - 1 else ""


def archive_suffix(name: str) -> str:
    """`.tar.gz`, `.zip`, ...; "" for a file that is no archive."""
    name = name.lower()
    if not name.endswith(_ARCHIVE_SUFFIXES):  # as of nearly all
        return ""
    return next(suffix for suffix in _ARCHIVE_SUFFIXES if name.endswith(suffix))


def _matches(relative: str, *, patterns: Sequence[str]) -> bool:
    name = relative.rsplit("/", 1)[-1]
    return any(fnmatchcase(relative if "/" in p else name, p) for p in patterns)


class _Walk:
    """One walk of a folder, each real folder once, whatever links lead to it."""

    def __init__(self, root: Path, *, globs: Globs) -> None:
        self._root = root
        self._globs = globs
        self._entered: set[tuple[int, int]] = set()
        self._ignore_of: dict[str, list[tuple[str, pathspec.GitIgnoreSpec]]] = {}

    def __iter__(self) -> Iterator[Met]:
        if _is_one_dataset(self._root):
            yield Met(str(self._root), is_folder=True)
            return
        self._why_not_entered(self._root)
        for folder, folder_names, file_names in os.walk(
            self._root, onerror=_fail, followlinks=True
        ):
            inside = Path(folder).relative_to(self._root).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            here = str(Path(folder, "x"))[:-1]  # without the ./ of a relative root
            ignores = self._ignores(folder, prefix=prefix, file_names=file_names)
            met = [self._met_folder(folder, prefix + n, ignores) for n in sorted(folder_names)]
            datasets = [m for m in met if not m.why_not and _is_one_dataset(m.path)]
            # In place: os.walk descends in this order and into nothing else.
            folder_names[:] = [m.path.name for m in met if not m.why_not and m not in datasets]
            yield from (m for m in met if m.why_not or m in datasets)
            for name in sorted(file_names):
                yield Met(here + name, self._why_not_file(here + name, prefix + name, ignores))

    def _ignores(
        self, folder: str, *, prefix: str, file_names: list[str]
    ) -> list[tuple[str, pathspec.GitIgnoreSpec]]:
        parent = prefix.rstrip("/").rpartition("/")[0]
        ignores = list(self._ignore_of.get(parent, [])) if prefix else []
        if self._globs.heed_ignore_files and IGNORE_FILE in file_names:
            ignores.append((prefix, _ignore_file(Path(folder, IGNORE_FILE))))
        self._ignore_of[prefix.rstrip("/")] = ignores
        return ignores

    def _met_folder(
        self, folder: str, relative: str, ignores: list[tuple[str, pathspec.GitIgnoreSpec]]
    ) -> Met:
        path = Path(folder, relative.rsplit("/", 1)[-1])
        why_not = self._globs.why_not_folder(relative)
        if not why_not and _ignored(f"{relative}/", ignores):
            why_not = f"by {IGNORE_FILE}"
        return Met(str(path), why_not or self._why_not_entered(path), is_folder=True)

    def _why_not_file(
        self, text: str, relative: str, ignores: list[tuple[str, pathspec.GitIgnoreSpec]]
    ) -> str:
        if why_not := self._globs.why_not_file(relative):
            return why_not
        if _ignored(relative, ignores):
            return f"by {IGNORE_FILE}"
        if not (path := Path(text)).is_file():
            return "broken link" if path.is_symlink() else "not a regular file"
        return ""

    def _why_not_entered(self, path: Path) -> str:
        """A link may lead back to where the walk has been, or in a circle."""
        status = path.stat()
        if (status.st_dev, status.st_ino) in self._entered:
            is_link = path.is_symlink()
            return "link to a folder already read" if is_link else "already read through a link"
        self._entered.add((status.st_dev, status.st_ino))
        return ""


def walk_folder(root: Path, *, globs: Globs) -> Iterator[Met]:
    """Files, saved datasets and what is left out, folders and names sorted; links are followed."""
    return iter(_Walk(root, globs=globs))


def _is_one_dataset(folder: Path) -> bool:
    """Whether `datasets` reads the folder whole; one with several splits is refused."""
    if splits := splits_of_saved_dict(folder):
        raise ValueError(
            f"--input {folder}: holds the splits {', '.join(splits)}; choose one, such as "
            f"{folder}/{splits[0]}"
        )
    return is_saved_dataset(folder)


def _ignore_file(path: Path) -> pathspec.GitIgnoreSpec:
    import pathspec

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
