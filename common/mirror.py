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


def upload_folder(folder: Path, url: str, *, last: str) -> None:
    """Make the objects below `url` those of the folder; one that is there already stays.

    mirror.json there lists them with their checksums, and says that it is complete at the end. So a
    reader never takes a part for the whole, and an upload that was killed is resumed.

    Args:
        last: the file that marks the folder as finished; uploaded behind all others.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    own = {name: record_file(folder / name) for name in names if (folder / name).is_file()}
    is_complete, there = _read_listing(url)
    if is_complete and there == own:
        return
    if there != own:
        same = {name: record for name, record in there.items() if own.get(name) == record}
        _write_listing(url, same, is_complete=False)  # before anything of the old one goes
        for file in list_files(url):
            if _name_below(url, file.url) not in {*same, LISTING}:
                delete(file.url)
        _write_listing(url, own, is_complete=False)
    sizes = {_name_below(url, file.url): file.num_bytes for file in list_files(url)}
    for name in sorted(own, key=lambda name: (name == last, name)):
        if sizes.get(name) != own[name].num_bytes:
            upload(str(folder / name), f"{url}/{name}")
    _write_listing(url, own, is_complete=True)


def download_folder(url: str, to: Path) -> None:
    """Bring a complete mirror back as the folder `to`, which then appears at once.

    Raises:
        ValueError: when `to` exists.
        RemoteError: when the mirror is incomplete, or a file is not what it was.
    """
    if to.exists():
        raise ValueError(f"{to}: exists; choose another folder")
    is_complete, files = _read_listing(url)
    if not is_complete:
        raise RemoteError(f"{url}: holds no complete mirror of a folder")
    staging = to.with_name(f".{to.name}.downloading")
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
    """Remove a mirror; from the first moment on it is not complete."""
    if read_bytes(f"{url}/{LISTING}") is not None:
        delete(f"{url}/{LISTING}")
    for file in list_files(url):
        delete(file.url)


def complete_mirrors(url: str) -> list[str]:
    """Names of the complete mirrors right below a URL, sorted."""
    listings = [_name_below(url, file.url) for file in list_files(url)]
    names = [name.removesuffix(f"/{LISTING}") for name in listings if name.endswith(f"/{LISTING}")]
    return sorted(name for name in names if "/" not in name and _read_listing(f"{url}/{name}")[0])


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


def _read_listing(url: str) -> tuple[bool, Files]:
    """Whether a mirror is complete, and what it holds or is to hold."""
    text = read_bytes(f"{url}/{LISTING}")
    if text is None:
        return False, {}
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
