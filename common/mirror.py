"""Copies a finished folder to an object store and back: resumed, checked, complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from common.checksum import FileRecord, record_file
from common.durable import fsync_path
from common.remote import (
    RemoteError,
    delete,
    list_files,
    open_remote,
    read_bytes,
    upload,
    write_bytes,
)

LISTING = "mirror.json"
_COPY_BYTES = 1 << 22
Files = dict[str, FileRecord]


def upload_folder(folder: Path, url: str, *, last: str) -> bool:
    """Make the objects below `url` those of the folder; one of its size that is there stays.

    mirror.json there lists them with their checksums, and says that it is complete at the end. So a
    reader never takes a part for the whole, and an upload that was killed is resumed. Only what an
    earlier mirror.json lists is deleted or replaced.

    Args:
        last: the file that marks the folder as finished; uploaded behind all others.

    Returns:
        Whether anything was to be done.

    Raises:
        ValueError: when something is there that is not of a mirror.
    """
    own = _records(folder)
    is_complete, there = _read_listing(url)
    sizes = _sizes(url)
    _refuse_others(url, own, there=there, sizes=sizes)
    if there != own:
        _replace_listing(url, own, there=there or {}, sizes=sizes)
    missing = [name for name in own if sizes.get(name) != own[name].num_bytes]
    if there == own and is_complete and not missing:
        return False
    if there == own and is_complete:
        _write_listing(url, own, is_complete=False)
    for name in sorted(missing, key=lambda name: (name == last, name)):
        upload(str(folder / name), f"{url}/{name}")
    _write_listing(url, own, is_complete=True)
    return True


def download_folder(url: str, to: Path) -> None:
    """Bring a complete mirror back as the folder `to`, which then appears at once.

    Raises:
        ValueError: when `to` exists.
        RemoteError: when the mirror is incomplete, or a file is not what it was.
    """
    if to.exists():
        raise ValueError(f"{to}: exists; choose another folder")
    is_complete, files = _read_listing(url)
    if files is None or not is_complete:
        raise RemoteError(f"{url}: holds no complete mirror of a folder")
    staging = to.with_name(f".{to.name}.downloading")
    staging.mkdir(parents=True, exist_ok=True)  # also for a mirror of no files
    for name, expected in files.items():
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or record_file(path) != expected:
            _download(f"{url}/{name}", path, expected=expected)
    for path in [path for path in staging.rglob("*") if path.is_file()]:
        if path.relative_to(staging).as_posix() not in files:
            path.unlink()  # of a download of something else
    for folder in {staging, *(path.parent for path in staging.rglob("*"))}:
        fsync_path(folder)
    staging.rename(to)
    fsync_path(to.parent)


def delete_mirror(url: str) -> None:
    """Remove what a mirror lists; from the first moment on it is not complete."""
    _, there = _read_listing(url)
    if there is None:
        return
    _replace_listing(url, {}, there=there, sizes=_sizes(url))
    delete(f"{url}/{LISTING}")


def listed_at(url: str) -> Files:
    """What the mirror at a URL holds, or is to hold, by name; nothing where there is none."""
    return _read_listing(url)[1] or {}


def mirrors_below(url: str) -> list[str]:
    """Names of the mirrors right below a URL, also of those that are not complete, sorted."""
    end = f"/{LISTING}"
    names = [name.removesuffix(end) for name in _sizes(url) if name.endswith(end)]
    return sorted(name for name in names if "/" not in name)


def complete_mirrors(url: str) -> list[str]:
    """Names of the complete mirrors right below a URL, sorted."""
    return [name for name in mirrors_below(url) if _read_listing(f"{url}/{name}")[0]]


def _records(folder: Path) -> Files:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    # A mirror.json here came with a copy by other tools; the mirror has its own.
    return {
        name: record_file(path)
        for name, path in sorted(paths.items())
        if path.is_file() and name != LISTING
    }


def _sizes(url: str) -> dict[str, int]:
    """What is below a URL now, whatever a listing says, and how large."""
    return {_name_below(url, file.url): file.num_bytes for file in list_files(url)}


def _refuse_others(url: str, own: Files, *, there: Files | None, sizes: Mapping[str, int]) -> None:
    """Raise for objects that a user would lose: those that no mirror has put there."""
    if there is None and sizes:
        name = min(sizes) or "an object"
        raise ValueError(f"{url}: is no mirror, but holds {name}; choose a place that is empty")
    others = [name for name in sizes if name in own and name not in (there or {})]
    if others:
        raise ValueError(
            f"{url}/{others[0]}: is in the way, and not of the mirror there; choose another place"
        )


def _replace_listing(url: str, own: Files, *, there: Files, sizes: dict[str, int]) -> None:
    """Delete what another content of the mirror put there, and list the new one as incomplete.

    Each moment's listing names all of the mirror's objects: after a kill none of them is taken for
    somebody else's, or one of the old content for one of the new.
    """
    if there:
        _write_listing(url, there, is_complete=False)
    for name in there:
        if name in sizes and own.get(name) != there[name]:
            delete(f"{url}/{name}")
            del sizes[name]
    _write_listing(url, own, is_complete=False)


def _download(url: str, path: Path, *, expected: FileRecord) -> None:
    with open_remote(url) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, _COPY_BYTES)
    found = record_file(path, durable=True)
    if found != expected:
        raise RemoteError(
            f"{url}: damaged: expected {expected.num_bytes} bytes, sha256 {expected.sha256[:16]}, "
            f"found {found.num_bytes}, {found.sha256[:16]}"
        )


def _name_below(url: str, of: str) -> str:
    return of.removeprefix(url.rstrip("/")).lstrip("/")


def _read_listing(url: str) -> tuple[bool, Files | None]:
    """Whether a mirror is complete, and what it holds or is to hold; None if there is none."""
    text = read_bytes(f"{url}/{LISTING}")
    if text is None:
        return False, None
    try:
        listing = json.loads(text)
        files = {str(name): FileRecord(**record) for name, record in listing["files"].items()}
        is_complete = listing["complete"] is True
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RemoteError(f"{url}/{LISTING}: damaged: {error}") from None
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise RemoteError(f"{url}/{LISTING}: names {name!r}, a file outside of the folder")
    return is_complete, files


def _write_listing(url: str, files: Mapping[str, FileRecord], *, is_complete: bool) -> None:
    listing = {
        "complete": is_complete,
        "files": {name: asdict(record) for name, record in sorted(files.items())},
    }
    write_bytes(f"{url}/{LISTING}", json.dumps(listing, indent=1).encode())
