"""Token ids in flat files: .npy arrays, and Megatron's .idx with .bin."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_prep.reading.documents import BadInput, Document
from data_prep.reading.fields import Fields
from data_prep.reading.megatron_index import document_offsets, open_index, read_values
from data_prep.reading.parts import PART_BYTES, InputFile, Item, Part

_NPY_HEADER_BYTES = 1 << 16  # numpy would read as many as the file says, up to 4 GiB
_INDEX_BYTES_A_DOCUMENT = 20
# A document must fit into memory; an uncut stream is not a document.
_MAX_DOCUMENT_IDS = 1 << 30
_BROKEN = (ValueError, OSError)


def _too_long(place: int, *, num_ids: int, remedy: str = "") -> BadInput:
    detail = f"{num_ids} ids, at most {_MAX_DOCUMENT_IDS}"
    return BadInput(place, reason="document too long", detail=detail + remedy, num_tokens=num_ids)


class Npy:
    """A 2-D array has one document per row; a 1-D array is one, or many that end in an id."""

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        try:
            array = _open_npy(file.path)
        except _BROKEN as error:
            yield Part(file, start, start, data=_broken_npy(error, place=start))
            return
        num_rows = array.shape[0]
        step = max(1, PART_BYTES // array.row_bytes)
        if len(array.shape) == 1 and fields.split_after is None:
            step = max(1, num_rows)
        for begin in range(start, num_rows, step):
            end = min(begin + step, num_rows)
            yield Part(file, begin, end, num_bytes=(end - begin) * array.row_bytes)

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        if isinstance(part.data, BadInput):
            yield part.data
            return
        try:
            array = _open_npy(part.file.path)
            if len(array.shape) == 2:
                yield from _rows(array, part=part)
            elif (split_after := fields.split_after) is None:
                yield _stretch(array, begin=part.start, end=part.end)
            else:
                yield from _stream(array, part=part, split_after=split_after)
        except _BROKEN as error:
            yield _broken_npy(error, place=part.start)


@dataclass(frozen=True)
class _NpyArray:
    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    first_byte: int

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def read(self, begin: int, end: int) -> np.ndarray:
        """Rows of a 2-D array, ids of a 1-D one."""
        count = (end - begin) * math.prod(self.shape[1:])
        first_byte = self.first_byte + begin * self.row_bytes
        ids = read_values(self.path, dtype=self.dtype, first_byte=first_byte, count=count)
        return ids.reshape(end - begin, *self.shape[1:])


def _open_npy(path: str) -> _NpyArray:
    """Parse the header and check it against the file's size before any data is read."""
    with Path(path).open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        head = io.BytesIO(file.read(_NPY_HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(head)
        if version == (1, 0):
            shape, in_columns, dtype = np.lib.format.read_array_header_1_0(head)
        elif version == (2, 0):
            shape, in_columns, dtype = np.lib.format.read_array_header_2_0(head)
        else:
            raise ValueError(f"expected version 1.0 or 2.0, found {version[0]}.{version[1]}")
    except Exception as error:  # of any kind: the header is a Python literal
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"header: {lines[0][:200]}") from None
    if dtype.kind not in "iu":
        raise ValueError(f"expected integers, found dtype {str(dtype)[:50]}")
    if len(shape) not in (1, 2) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"expected shape [documents, T] or [N], found {shape}"[:200])
    if len(shape) == 2 and shape[1] == 0:
        raise ValueError(f"expected at least one id per document, found shape {shape}")
    if in_columns and len(shape) == 2:
        raise ValueError("expected rows, found Fortran order; save numpy.ascontiguousarray(ids)")
    expected = head.tell() + dtype.itemsize * math.prod(shape)
    if num_bytes != expected:
        raise ValueError(f"expected {expected} bytes for shape {shape}, found {num_bytes}")
    return _NpyArray(path, dtype=dtype, shape=shape, first_byte=head.tell())


def _rows(array: _NpyArray, *, part: Part) -> Iterator[Item]:
    if array.shape[1] > _MAX_DOCUMENT_IDS:
        for row in range(part.start, part.end):
            yield _too_long(row, num_ids=array.shape[1])
        return
    for number, ids in enumerate(array.read(part.start, part.end)):
        yield Document(ids, place=part.start + number)


def _stretch(array: _NpyArray, *, begin: int, end: int) -> Item:
    if end - begin > _MAX_DOCUMENT_IDS:
        remedy = "; --split-on-eos ends a document at each EOS"
        return _too_long(begin, num_ids=end - begin, remedy=remedy)
    return Document(array.read(begin, end), place=begin)


def _stream(array: _NpyArray, *, part: Part, split_after: int) -> Iterator[Item]:
    """Documents that begin in the part, each ending in `split_after`; the last may end later.

    With ids 5 6 0 7 0 8 and `split_after` 0 the documents are 5 6 0, 7 0 and 8.
    """
    first = max(part.start - 1, 0)
    window = array.read(first, part.end)
    ends = (first + 1 + np.flatnonzero(window == split_after)).tolist()
    begins = [0] * (part.start == 0) + [end for end in ends if end < part.end]
    if not begins:
        return
    if not ends or ends[-1] <= begins[-1]:
        ends.append(_next_end(array, begin=part.end, split_after=split_after))
    for begin, end in zip(begins, ends[-len(begins) :], strict=True):
        if end <= part.end:
            yield Document(window[begin - first : end - first], place=begin)
        else:
            yield _stretch(array, begin=begin, end=end)


def _next_end(array: _NpyArray, *, begin: int, split_after: int) -> int:
    num_ids = array.shape[0]
    step = PART_BYTES // array.dtype.itemsize
    for start in range(begin, num_ids, step):
        found = np.flatnonzero(array.read(start, min(start + step, num_ids)) == split_after)
        if len(found):
            return start + int(found[0]) + 1
    return num_ids


def _broken_npy(error: Exception, *, place: int) -> BadInput:
    return BadInput(place, reason="broken .npy", detail=str(error))


class Megatron:
    """Parts are documents; their offsets in the .bin are sent with the part.

    So the index is read and checked only once, in the first process.
    """

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        place = start
        try:
            index = open_index(file.path)
            step = max(1, PART_BYTES // index.dtype.itemsize)
            for place, offsets in document_offsets(index, start=start):
                begin, last = 0, len(offsets) - 1
                while begin < last:
                    end = int(np.searchsorted(offsets, offsets[begin] + step, side="right")) - 1
                    end = min(max(end, begin + 1), last)
                    num_ids = int(offsets[end] - offsets[begin])
                    yield Part(
                        file,
                        place + begin,
                        place + end,
                        num_bytes=num_ids * index.dtype.itemsize
                        + (end - begin) * _INDEX_BYTES_A_DOCUMENT,
                        data=offsets[begin : end + 1].copy(),
                    )
                    begin = end
                place += last
        except _BROKEN as error:
            yield Part(file, place, place, data=_broken_megatron(error, place=place))

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        if isinstance(part.data, BadInput):
            yield part.data
            return
        offsets: list[int] = part.data.tolist()
        first, num_ids = offsets[0], offsets[-1] - offsets[0]
        if num_ids > _MAX_DOCUMENT_IDS:  # then it is the only one in its part
            yield _too_long(part.start, num_ids=num_ids)
            return
        try:
            index = open_index(part.file.path)
            first_byte = first * index.dtype.itemsize
            ids = read_values(
                index.bin_path, dtype=index.dtype, first_byte=first_byte, count=num_ids
            )
        except _BROKEN as error:
            yield _broken_megatron(error, place=part.start)
            return
        for number, (begin, end) in enumerate(pairwise(offsets)):
            yield Document(ids[begin - first : end - first], place=part.start + number)


def _broken_megatron(error: Exception, *, place: int) -> BadInput:
    return BadInput(place, reason="broken Megatron index", detail=str(error))
