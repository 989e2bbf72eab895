"""The base of every JSON record we write: strict, frozen, safe to read from any source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


def printable_path(text: str) -> str:
    r"""A path in which bytes that are not UTF-8 are spelt out, as \xe9: JSON cannot hold them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


RecordT = TypeVar("RecordT", bound="Record")
_OWN_HASH = "sha256_of_the_rest"

# A bare file name: no folder, no "..", nothing hidden. So a corpus from someone else cannot
# make its reader open another file.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}$")]
Printable = Annotated[
    str, BeforeValidator(lambda text: printable_path(text) if isinstance(text, str) else text)
]
Count = Annotated[int, Field(ge=0, le=2**62)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A part of a manifest: no unknown field, no silent conversion, no change after reading."""

    # Each kind's checks are built when it is first used: few commands use them all.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class FileRecord(Record):
    name: FileName
    num_bytes: Count
    sha256: Sha256


def must_agree(what: str, *, expected: int, found: int) -> None:
    if expected != found:
        raise ValueError(f"{what}: expected {expected}, found {found}")


def record_text(record: Record) -> bytes:
    """A record as JSON whose first member is the hash of every byte after it."""
    rest = record.model_dump_json(indent=2).removeprefix("{\n").encode() + b"\n"
    return _seal(rest) + rest


def load_record(record_type: type[RecordT], path: Path, *, made_by: str) -> RecordT:
    """Read and check one JSON record; any problem is a ValueError.

    A record without a leading hash, as from another program or an older build, is accepted too.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: not found; {made_by} writes it when it finishes") from None
    if _OWN_HASH.encode() in text[: len(_seal(b""))]:
        begin, rest = text[: len(_seal(b""))], text[len(_seal(b"")) :]
        if begin != _seal(rest):
            raise ValueError(
                f"{path}: not a valid record of {made_by}: damaged or edited: its checksum is "
                f"{hashlib.sha256(rest).hexdigest()}, but it begins with "
                f"{begin.decode(errors='replace').split()}"
            )
        text = b"{\n" + rest
    try:
        return record_type.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'record'}: {problem['msg']}"
            for problem in error.errors()[:5]
        )
        raise ValueError(f"{path}: not a valid record of {made_by}: {problems}") from None


def _seal(rest: bytes) -> bytes:
    return f'{{\n  "{_OWN_HASH}": "{hashlib.sha256(rest).hexdigest()}",\n'.encode()


def files_sha256(files: Iterable[FileRecord]) -> str:
    """One hash for a set of files, independent of their order."""
    listing = sorted((file.name, file.sha256) for file in files)
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
