"""Files on object stores (s3://, gs://, hf://): listed, read by ranges, copied, through fsspec."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import IO, Any, NamedTuple, TypeVar, cast

Result = TypeVar("Result")

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
_PACKAGE_OF = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
# Seconds before each further try. The client's own tries come first.
_WAITS = (1.0, 5.0, 15.0)
_FOLDERS_AHEAD = 8
_FIRST_BYTES, _MOST_BYTES = 1 << 18, 1 << 24
# What tells one content of an object from another, by the names of several stores.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime")


class RemoteError(OSError):
    """What an object store answers, or that it does not, in one sentence."""


@dataclass(frozen=True)
class RemoteFile:
    url: str
    num_bytes: int
    version: int
    """Another one after each change."""


def is_remote(text: str) -> bool:
    """Whether it is a URL, such as s3://bucket/folder, and no path."""
    return _URL.match(text) is not None


def folder_url(text: str) -> str:
    """A URL without the slashes at its end.

    Raises:
        ValueError: when it names no place at the store.
    """
    place = text.partition("://")[2].rstrip("/")
    if not place:
        raise ValueError(f"{text}: names no folder; expected a URL, such as s3://bucket/folder")
    return text.rstrip("/")


def list_files(url: str) -> list[RemoteFile]:
    """The object itself, or all below it, sorted by name; nothing for what is not there."""
    return list(iter_files(url))


def iter_files(url: str) -> Iterator[RemoteFile]:
    """The same one by one: memory holds what is in a few folders, some 2 KB for each object.

    Each folder is a request, or one for each thousand objects; the next folders are asked ahead.
    """
    store, path = _store_of(url)
    left = [_Entry(path, is_folder=True)]
    """Of the folders that have been listed, the next one last."""
    listed: dict[str, Future[list[_Entry]]] = {}
    with ThreadPoolExecutor(_FOLDERS_AHEAD) as pool:
        while left:
            for entry in left[-_FOLDERS_AHEAD:]:
                if entry.is_folder and entry.name not in listed:
                    listed[entry.name] = pool.submit(_entries, store, entry.name, url=url)
            entry = left.pop()
            if entry.is_folder:
                left += listed.pop(entry.name).result()
            else:
                yield RemoteFile(_url_of(entry.name, url, path), entry.num_bytes, entry.version)


def file_info(url: str) -> RemoteFile:
    """As it is now.

    Raises:
        RemoteError: when it is missing, too.
    """
    store, path = _store_of(url)
    store.invalidate_cache()
    return _remote_file(url, _tried(url, lambda: store.info(path)))


def object_bytes(url: str) -> int:
    """Size of the object of that very name; 0 where there is none, or only objects below it."""
    store, path = _store_of(url)
    try:
        info = _tried(url, lambda: store.info(path))
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return 0
        raise
    return 0 if info["type"] == "directory" else int(info["size"] or 0)


def open_remote(url: str) -> IO[bytes]:
    """An object as a file that can be read from any place, on and on by ever larger ranges."""
    return cast(IO[bytes], io.BufferedReader(_Ranges(url), buffer_size=_FIRST_BYTES))


def read_bytes(url: str) -> bytes | None:
    """A whole small object; None if there is none."""
    store, path = _store_of(url)
    try:
        return cast(bytes, _tried(url, lambda: store.cat_file(path)))
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def write_bytes(url: str, content: bytes) -> None:
    """Make an object, at once."""
    store, path = _store_of(url)
    _tried(url, lambda: store.pipe_file(path, content))


def upload(source: str, url: str) -> None:
    """A local file as an object, which is there when it is whole."""
    store, path = _store_of(url)
    _tried(url, lambda: store.put_file(source, path))


def delete(url: str) -> None:
    store, path = _store_of(url)
    _tried(url, lambda: store.rm_file(path))


class _Ranges(io.RawIOBase):
    """Reads of an object, each retried by itself; a sequence of them becomes a few large ones."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store, self._path = _store_of(url)
        self._num_bytes = _num_bytes(url)
        self._at = 0
        self._block_at, self._block = 0, b""
        self._ahead = _FIRST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._at >= self._num_bytes:
            return 0
        begin = self._at - self._block_at
        if not 0 <= begin < len(self._block):
            self._fetch(len(buffer))
            begin = 0
        piece = self._block[begin : begin + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _fetch(self, wanted: int) -> None:
        goes_on = self._at == self._block_at + len(self._block)
        self._ahead = min(2 * self._ahead, _MOST_BYTES) if goes_on else _FIRST_BYTES
        begin = self._at
        end = min(begin + max(wanted, self._ahead), self._num_bytes)
        self._block_at, self._block = begin, b""
        if begin < end:
            self._block = _tried(self._url, lambda: self._range(begin, end))

    def _range(self, begin: int, end: int) -> bytes:
        found: bytes = self._store.cat_file(self._path, start=begin, end=end)
        if len(found) != end - begin:
            raise EOFError(f"{len(found)} of {end - begin} bytes came from {begin} on")
        return found


def _store_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        import fsspec

        # Only a disk knows folders, and needs them before their files.
        options = {"auto_mkdir": True} if url.startswith("file://") else {}
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url, **options))
    except ImportError:
        name = _PACKAGE_OF.get(url.partition("://")[0], "the file system for fsspec")
        raise RemoteError(f"{url}: needs {name}: pip install '.[remote]' in the checkout") from None
    except ValueError as error:
        known = ", ".join(f"{scheme}://" for scheme in _PACKAGE_OF)
        raise RemoteError(f"{url}: {error}; known are {known}") from None


class _Entry(NamedTuple):
    name: str
    num_bytes: int = 0
    version: int = 0
    is_folder: bool = False


def _entries(store: Any, folder: str, *, url: str) -> list[_Entry]:
    """What is right below a folder, the last name first; the object itself if it is none."""
    try:
        found = _tried(url, lambda: store.ls(folder, detail=True, refresh=True))
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
    store.invalidate_cache(folder)  # it would keep most of a kilobyte for each
    entries = []
    for info in found:
        name = info["name"]
        if info["type"] != "directory":
            entries.append(_entry(name, info))
        elif name.rstrip("/") != folder.rstrip("/"):
            entries.append(_Entry(name, is_folder=True))
        else:  # a folder without a name, which clients cannot list by itself: a//b
            below = _tried(url, lambda: store.find(folder, detail=True))
            inside = folder.rstrip("/") + "//"
            entries += [_entry(name, i) for name, i in below.items() if name.startswith(inside)]
            store.invalidate_cache()
    entries = [e for e in entries if e.is_folder or not e.name.endswith("/")]  # marks of folders
    # As whole names would be sorted: what is in a folder begins with its name and a slash.
    return sorted(entries, key=lambda e: e.name + "/" * e.is_folder, reverse=True)


def _entry(name: str, info: dict[str, Any]) -> _Entry:
    file = _remote_file(name, info)
    return _Entry(name, file.num_bytes, file.version)


def _url_of(name: str, url: str, path: str) -> str:
    """Of an object that the store found at `path`, which is its own name for `url`."""
    above = path.rstrip("/") + "/"
    if name.startswith(above):  # some stores write their paths otherwise than the URL does
        return f"{url.rstrip('/')}/{name.removeprefix(above)}"
    return name if is_remote(name) else f"{url.partition('://')[0]}://{name}"


def _remote_file(url: str, info: dict[str, Any]) -> RemoteFile:
    known = (info[key] for key in _VERSION_KEYS if info.get(key))
    version = f"{info['size']} {next(known, '')}".replace('"', "")
    digest = blake2b(version.encode(), digest_size=6).digest()
    return RemoteFile(url, int(info["size"] or 0), int.from_bytes(digest, "big"))


@lru_cache(maxsize=1 << 12)
def _num_bytes(url: str) -> int:
    return file_info(url).num_bytes


def _tried(url: str, work: Callable[[], Result]) -> Result:
    """Try again what a later try may mend.

    Raises:
        RemoteError: for what it does not mend.
    """
    for wait in (*_WAITS, None):
        try:
            return work()
        except RemoteError:
            raise
        except FileNotFoundError as error:
            raise RemoteError(f"{url}: there is no such object") from error
        except Exception as error:  # each client raises its own kinds
            said = " ".join(str(error).split()) or type(error).__name__
            if _is_denied(error):
                raise RemoteError(f"{url}: not allowed, look at the credentials: {said}") from None
            if wait is None:
                raise RemoteError(f"{url}: failed {len(_WAITS) + 1} times: {said}") from None
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_denied(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)  # of a hub
    is_named = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
    return is_named or status in (401, 403)
