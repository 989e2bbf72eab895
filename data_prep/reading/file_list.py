"""The files of a domain in order, however many there are: memory holds only the newest of them."""

from __future__ import annotations

import pickle
import weakref
import zlib
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING

from data_prep.reading.parts import InputFile, Kind

if TYPE_CHECKING:
    from data_prep.reading.folders import Globs

_Row = tuple[str, Kind, int, int, "Globs | None"]  # plain: objects take ten times as long
_BLOCK_FILES = 4096
# Of compressed blocks, some 15 bytes a file; a longer list goes to a file in TMPDIR.
_MEMORY_BYTES = 1 << 24


class FileList:
    """Appended to while inputs are searched, then read in order as often as needed."""

    def __init__(self, *, first_number: int) -> None:
        """
        Args:
            first_number: of the first file among all of the build; the others count on.
        """
        self.num_bytes = 0
        self._first = first_number
        self._newest: list[_Row] = []
        self._bounds = [0]
        """Of the blocks in the scratch file."""
        self._scratch = SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115  it lives as long as the list
        weakref.finalize(self, self._scratch.close)

    def __len__(self) -> int:
        return (len(self._bounds) - 1) * _BLOCK_FILES + len(self._newest)

    @property
    def next_number(self) -> int:
        """One more than the last file's."""
        return self._first + len(self)

    def append(self, file: InputFile) -> None:
        """Add a file, which gets the next number."""
        self.num_bytes += file.num_bytes
        self._newest.append((file.path, file.kind, file.num_bytes, file.modified_ns, file.members))
        if len(self._newest) == _BLOCK_FILES:
            self._scratch.seek(self._bounds[-1])
            self._scratch.write(zlib.compress(pickle.dumps(self._newest), level=1))
            self._bounds.append(self._scratch.tell())
            self._newest = []

    def __iter__(self) -> Iterator[InputFile]:
        return self.from_number(self._first)

    def from_number(self, number: int) -> Iterator[InputFile]:
        """The files from the one of this number on."""
        first_block, skipped = divmod(max(number - self._first, 0), _BLOCK_FILES)
        for block in range(first_block, len(self._bounds)):
            at = self._first + block * _BLOCK_FILES
            for row in self._rows(block)[skipped:]:
                path, kind, num_bytes, modified_ns, members = row
                yield InputFile(path, kind, num_bytes, modified_ns, at + skipped, members)
                skipped += 1
            skipped = 0

    def _rows(self, block: int) -> list[_Row]:
        if block == len(self._bounds) - 1:
            return self._newest
        begin, end = self._bounds[block : block + 2]
        self._scratch.seek(begin)  # another iteration may have moved it
        rows: list[_Row] = pickle.loads(zlib.decompress(self._scratch.read(end - begin)))
        return rows
