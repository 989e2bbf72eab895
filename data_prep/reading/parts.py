"""Inputs cut into parts, each small enough for one task and readable in any process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from data_prep.reading.documents import BadInput, Document, Fields

Kind = Literal["lines", "stream", "text", "parquet", "arrow", "hub", "npy", "megatron"]
Item = Document | BadInput
PART_BYTES = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """One file to read, or one dataset that a library reads for us."""

    path: str
    kind: Kind
    num_bytes: int
    modified_ns: int = 0
    """Time of its last change: tells whether an unfinished build may go on."""
    number: int = 0
    """Place among all inputs of the build."""


@dataclass(frozen=True)
class Part:
    """A piece of one input; `start` and `end` count what the format counts, bytes or rows."""

    file: InputFile
    start: int
    end: int
    num_bytes: int = 0
    """On disk, for the progress bar."""
    data: Any = None
    """What only the first process can read, a stream's lines, say; or the `BadInput` it met."""


class Format(Protocol):
    """How inputs of one kind are cut, in the first process, and read, in whichever.

    Where the cuts fall decides speed and memory, never a byte of the corpus.
    """

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        """Parts in order, from `start`, which is the end of a part that was read before."""

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        """Documents that begin in the part, and what is wrong with the others."""
