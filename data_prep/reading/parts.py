"""Inputs cut into parts, each small enough for one task and readable in any process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from data_prep.reading.documents import BadInput, Document
from data_prep.reading.fields import Fields

if TYPE_CHECKING:
    from data_prep.reading.folders import Globs

Kind = Literal[
    "lines",
    "stream",
    "json",
    "table",
    "text",
    "archive",
    "extracted",
    "pages",
    "parquet",
    "arrow",
    "hub",
    "npy",
    "megatron",
]
Item = Document | BadInput
PART_BYTES = 1 << 21


@dataclass(frozen=True, slots=True)  # there may be millions
class InputFile:
    """One file to read, or one dataset that a library reads for us."""

    path: str
    kind: Kind
    num_bytes: int
    modified_ns: int = 0
    """Time of its last change: shows whether an unfinished build may resume."""
    number: int = 0
    """Number among all inputs of the build."""
    members: Globs | None = None
    """Which files of an archive are read."""


@dataclass(frozen=True)
class Part:
    """A piece of one input; `start` and `end` are in the format's units, bytes or rows."""

    file: InputFile
    start: int
    end: int
    num_bytes: int = 0
    """Size on disk, for the progress bar."""
    data: Any = None
    """What only the first process can read, such as a stream's lines, or its `BadInput`."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Members of an archive that are not read, by reason."""


class Format(Protocol):
    """How inputs of one kind are cut (in the first process) and read (in any process).

    The cuts affect speed and memory, never the corpus.
    """

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        """Parts in order, from `start`, which is the end of a part already read."""

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        """Documents that begin in the part, and what is wrong with the others."""
