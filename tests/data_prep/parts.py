"""Files of ids: written, read as a build does (in parts, also from the middle), and damaged."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from data_prep.reading.documents import BadInput, Document
from data_prep.reading.fields import Fields
from data_prep.reading.megatron_index import DTYPE_OF_CODE, INDEX_HEADER, INDEX_MAGIC
from data_prep.reading.parts import Format, InputFile, Item

MANY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_all(
    path: Path, *, of: Format, split_after: int | None = None, restart_at: int | None = None
) -> list[Item]:
    """All items; with `restart_at`, as a build that was stopped behind that many parts."""
    fields = Fields(ids="ids", split_after=split_after)
    file = InputFile(str(path), "npy", path.stat().st_size)
    parts = list(of.cut(file, start=0, fields=fields))
    if restart_at is not None and 0 < restart_at < len(parts):
        done = parts[:restart_at]
        parts = done + list(of.cut(file, start=done[-1].end, fields=fields))
    return [item for part in parts for item in of.read(part, fields=fields)]


def contents_of(items: list[Item]) -> list[list[int]]:
    assert all(isinstance(item, Document) for item in items), items
    return [item.content.tolist() for item in items]  # type: ignore[union-attr]


def only_bad(items: list[Item]) -> BadInput:
    assert len(items) == 1 and isinstance(items[0], BadInput), items
    return items[0]


def only_our_errors(path: Path, *, of: Format) -> None:
    for split_after in (None, 0):
        for item in read_all(path, of=of, split_after=split_after):
            assert isinstance(item, (Document, BadInput))
            assert not isinstance(item, Document) or item.content.nbytes <= path.stat().st_size


def damaged(content: bytes, *, data: st.DataObject) -> bytes:
    """Some bytes overwritten, then perhaps cut short."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(changed) - 1))
        value = data.draw(
            st.binary(min_size=1, max_size=8)
            | st.sampled_from([b"\xff" * 8, b"\x00" * 7 + b"\x80", b"\xff\xff\xff\x7f"])
        )
        changed[place : place + len(value)] = value
    return bytes(changed[: data.draw(st.none() | st.integers(0, len(changed)))])


def megatron_files(
    prefix: Path, *, documents: list[list[list[int]]], code: int = 4, modes: bytes = b""
) -> None:
    """A pair from documents of sequences of ids, by the letter of the format."""
    dtype = np.dtype(DTYPE_OF_CODE[code])
    sequences = [ids for document in documents for ids in document]
    lengths = np.array([len(ids) for ids in sequences], dtype="<i4")
    pointers = (np.cumsum(lengths, dtype="<i8") - lengths) * dtype.itemsize
    bounds = np.cumsum([0, *map(len, documents)], dtype="<i8")
    head = INDEX_HEADER.pack(INDEX_MAGIC, 1, code, len(lengths), len(bounds))
    tables = lengths.tobytes() + pointers.astype("<i8").tobytes() + bounds.tobytes()
    Path(f"{prefix}.idx").write_bytes(head + tables + modes)
    Path(f"{prefix}.bin").write_bytes(np.array([*chain(*sequences)], dtype=dtype).tobytes())
