"""Archives of text files (.tar, also compressed, and .zip): each member is a document."""

from __future__ import annotations

import hashlib
import lzma
import posixpath
import tarfile
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, cast

import numpy as np

from common.remote import RemoteError
from data_prep.reading.compressed import (
    BROKEN_COMPRESSION,
    COMPRESSION_SUFFIXES,
    decompressed,
    open_input,
)
from data_prep.reading.documents import BadInput
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.kinds import kind_of
from data_prep.reading.parts import InputFile, Item, Part
from data_prep.reading.streamed import numbered_records, parts_of_records
from data_prep.reading.text_files import document_of_text

_BROKEN = "broken archive"
_REPLACED = "replaced by a later member of its name"
_READ_BYTES = 1 << 20
# What a member may raise: another compression, a password, bytes that are not what they should be.
_BROKEN_MEMBER = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(RuntimeError, EOFError, ValueError, OSError),
)

# What ends the reading of an archive, but for a store that does not answer.
_ENDS_EARLY = (BadInput, *BROKEN_COMPRESSION, tarfile.TarError, ValueError, OverflowError)


@dataclass(frozen=True)
class _Member:
    """A file of an archive that is read, or what is wrong with it."""

    name: str
    content: bytes | BadInput


@dataclass(frozen=True)
class _LeftOut:
    why: str  # "" for a folder, which is not counted


_Entry = tuple[_Member | _LeftOut, int]


class Archives:
    """Read from the beginning, so members are sent with the part; a place is a member's number."""

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        with open_input(file.path) as raw:
            is_zip = file.path.lower().endswith(".zip")
            members = _zip_members(file, raw) if is_zip else _tar_members(file, raw)
            for part in parts_of_records(file, raw, members, start=start):
                found = [] if isinstance(part.data, BadInput) else part.data
                reasons = Counter(each.why for each in found if isinstance(each, _LeftOut))
                yield replace(part, left_out={why: n for why, n in reasons.items() if why})

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        for place, member in numbered_records(part):
            if isinstance(member, BadInput):
                yield member
            elif isinstance(member, _Member):
                if isinstance(member.content, BadInput):
                    found: Item = member.content.at(place)
                else:
                    found = document_of_text(member.content, place=place)
                hint = f"; in its member {member.name}"
                yield found.with_hint(hint) if isinstance(found, BadInput) else found


def _why_not(name: str, *, is_file: bool, globs: Globs | None) -> str:
    """Why a member is not read; "" if it is: as for a file of a folder, and only text is."""
    globs = globs or Globs()
    if not is_file:
        return "not a regular file"
    path = PurePosixPath(name.lstrip("/"))
    if why := globs.why_not_path(path):
        return why
    if path.suffix.lower() in COMPRESSION_SUFFIXES:
        return f"{path.suffix} (compressed in an archive)"
    kind = kind_of(path.name)
    is_text = kind in (None, "text") or (kind == "json" and globs.json_as_text)
    return "" if is_text or kind == "table" else f"{path.suffix} (records in an archive)"


def _zip_members(file: InputFile, raw: IO[bytes]) -> Iterator[_Entry]:
    try:
        archive = zipfile.ZipFile(raw)
    except RemoteError:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise BadInput(0, reason=_BROKEN, detail=str(error)) from None
    with archive:
        last = {_plain(info.filename): info for info in archive.infolist()}
        for info in archive.infolist():
            if info.is_dir():
                yield _LeftOut(""), 0
                continue
            is_link = info.external_attr >> 28 == 0xA  # as Unix writes it
            if why := _why_not(info.filename, is_file=not is_link, globs=file.members):
                yield _LeftOut(why), 0
                continue
            if last[_plain(info.filename)] is not info:
                yield _LeftOut(_REPLACED), 0
                continue
            try:
                content: bytes | BadInput = archive.read(info)
            except RemoteError:
                raise
            except _BROKEN_MEMBER as error:
                content = BadInput(0, reason=_BROKEN, detail=str(error))
            yield _Member(info.filename, content), info.file_size


def _tar_members(file: InputFile, raw: IO[bytes]) -> Iterator[_Entry]:
    replaced = _replaced_members(file)
    stream = decompressed(file.path, raw)
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_CheckedHeader) as archive:
            for number, info in enumerate(archive):
                if info.isdir():
                    yield _LeftOut(""), 0
                elif why := _why_not(info.name, is_file=info.isreg(), globs=file.members):
                    yield _LeftOut(why), 0
                elif number in replaced:
                    yield _LeftOut(_REPLACED), 0
                else:
                    content = cast(IO[bytes], archive.extractfile(info)).read()
                    if len(content) < info.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield _Member(info.name, content), info.size
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps the header of every member
        # Its end is read too: the checksum of a compressed file comes last.
        while rest := stream.read(_READ_BYTES):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("goes on behind its end; unpack it with tar -i")
    except (RemoteError, BadInput, *BROKEN_COMPRESSION):
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:  # a number that is none, too
        raise BadInput(0, reason=_BROKEN, detail=str(error)) from None


def _replaced_members(file: InputFile) -> frozenset[int]:
    """Numbers of the members that a later one of the same name replaces, as unpacking would do.

    They are known only once all headers have been read, so an archive is read twice. Memory holds
    24 bytes a member.
    """
    numbers, digests = array("q"), bytearray()
    with open_input(file.path) as raw, suppress(*_ENDS_EARLY):  # the second reading says why
        stream = decompressed(file.path, raw)
        # the headers of a plain file can be had without what is between them
        mode = "r:" if stream is raw else "r|"
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=_CheckedHeader) as archive:  # type: ignore[call-overload]
            for number, info in enumerate(archive):
                if not info.isdir():
                    numbers.append(number)
                    name = _plain(info.name).encode("utf-8", "surrogateescape")
                    digests += hashlib.blake2b(name, digest_size=16).digest()
                archive.members.clear()
    rows = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    order = np.lexsort((rows[:, 1], rows[:, 0]))  # members of one name stay in order
    is_followed = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
    return frozenset(np.array(numbers)[order[:-1][is_followed]].tolist())


def _plain(name: str) -> str:
    """A member's name as it is unpacked: "a/b" of "./a//b" and "/a/b"."""
    return posixpath.normpath(name.lstrip("/"))


class _CheckedHeader(tarfile.TarInfo):
    """Refuses a damaged or missing header, which the library takes for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise  # the block that ends an archive
            raise tarfile.ReadError(f"{error}; the archive is damaged or truncated") from None
