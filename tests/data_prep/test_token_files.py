"""Flat files of ids give their documents back, and damaged ones are named, never believed."""

from __future__ import annotations

import io
import os
import struct
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.reading import token_files
from data_prep.reading.documents import BadInput, Document, Fields
from data_prep.reading.megatron_index import DTYPE_OF_CODE, INDEX_HEADER, INDEX_MAGIC
from data_prep.reading.parts import Format, InputFile, Item
from data_prep.reading.token_files import Megatron, Npy

_MANY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _read(
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


def _contents(items: list[Item]) -> list[list[int]]:
    assert all(isinstance(item, Document) for item in items), items
    return [item.content.tolist() for item in items]  # type: ignore[union-attr]


def _only_bad(items: list[Item]) -> BadInput:
    assert len(items) == 1 and isinstance(items[0], BadInput), items
    return items[0]


def _save(path: Path, ids: Any, **options: Any) -> Path:
    np.save(path, ids, **options)
    return path


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 16 bytes, so that documents cross their borders."""
    monkeypatch.setattr(token_files, "PART_BYTES", 16)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u2", "<i4", ">i8", "u8"])
def test_rows_of_an_array_are_documents_in_any_integer_type(
    tmp_path: Path, small_parts: None, dtype: str
) -> None:
    ids = np.arange(35).reshape(7, 5).astype(dtype)
    items = _read(_save(tmp_path / "a.npy", ids), of=Npy(), restart_at=1)
    assert _contents(items) == ids.tolist()
    assert [item.place for item in items] == list(range(7))


def test_one_dimension_is_one_document(tmp_path: Path, small_parts: None) -> None:
    path = _save(tmp_path / "a.npy", np.arange(100, dtype="<u2"))
    assert _contents(_read(path, of=Npy())) == [list(range(100))]
    assert _read(_save(tmp_path / "b.npy", np.zeros(0, dtype=int)), of=Npy()) == []


@pytest.mark.usefixtures("small_parts")
@_MANY
@given(
    ids=st.lists(st.integers(0, 3), max_size=80),
    dtype=st.sampled_from(["u1", "<u2", "<i4", "<i8"]),
    restart_at=st.integers(0, 5),
)
def test_a_stream_is_cut_behind_each_eos_wherever_parts_end(
    tmp_path: Path, ids: list[int], dtype: str, restart_at: int
) -> None:
    path = _save(tmp_path / "a.npy", np.array(ids, dtype=dtype))
    items = _read(path, of=Npy(), split_after=0, restart_at=restart_at)
    ends = [i + 1 for i, token in enumerate(ids) if token == 0]
    bounds = sorted({0, *ends, len(ids)})
    assert _contents(items) == [ids[begin:end] for begin, end in pairwise(bounds)]
    assert [item.place for item in items] == bounds[:-1]


def test_ids_are_reported_as_they_are_not_wrapped(tmp_path: Path) -> None:
    negative = np.array([[1, -5]], dtype="<i4")
    huge = np.array([[1, 2**63 + 9]], dtype="<u8")
    assert _contents(_read(_save(tmp_path / "a.npy", negative), of=Npy())) == [[1, -5]]
    assert _contents(_read(_save(tmp_path / "b.npy", huge), of=Npy())) == [[1, 2**63 + 9]]


@pytest.mark.parametrize(
    ("ids", "detail"),
    [
        (np.zeros((2, 3)), "expected integers, found dtype float64"),
        (np.zeros(3, dtype=bool), "expected integers, found dtype bool"),
        (np.array([{}, {}]), "expected integers, found dtype object"),
        (np.zeros(3, dtype=[("a", "i4")]), "expected integers, found dtype"),
        (np.zeros((2, 2, 2), dtype=int), r"expected shape [documents, T] or [N], found (2, 2, 2)"),
        (np.int64(3), "found ()"),
        (np.zeros((5, 0), dtype=int), "expected at least one id per document"),
        (np.asfortranarray(np.zeros((2, 3), dtype=int)), "numpy.ascontiguousarray"),
    ],
)
def test_arrays_that_are_not_ids_are_refused(tmp_path: Path, ids: Any, detail: str) -> None:
    bad = _only_bad(_read(_save(tmp_path / "a.npy", ids), of=Npy()))
    assert bad.reason == "broken .npy" and detail in bad.detail


def test_a_cut_or_foreign_array_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.npy", np.arange(10))
    path.write_bytes(path.read_bytes()[:-1])
    bad = _only_bad(_read(path, of=Npy()))
    assert bad.detail == "expected 208 bytes for shape (10,), found 207"
    path.write_bytes(b"not an array at all")
    assert "magic" in _only_bad(_read(path, of=Npy())).detail


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    array = _save(tmp_path / "a.npy", np.arange(4096).reshape(512, 8))
    _megatron_files(tmp_path / "b", documents=[[[1, 2, 3]]] * 100)
    for path, shrinks, reader in (
        (array, array, Npy()),
        (tmp_path / "b.idx", tmp_path / "b.bin", Megatron()),
    ):
        file = InputFile(str(path), "npy", path.stat().st_size)
        part = next(iter(reader.cut(file, start=0, fields=Fields(ids="ids"))))
        os.truncate(shrinks, 200)
        assert "found 200" in _only_bad(list(reader.read(part, fields=Fields(ids="ids")))).detail


def test_a_stream_too_long_for_memory_is_refused_with_the_remedy(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "_MAX_DOCUMENT_IDS", 3)
    bad = _only_bad(_read(_save(tmp_path / "a.npy", np.arange(5)), of=Npy()))
    assert bad.num_tokens == 5 and "--split-on-eos" in bad.detail
    rows = _read(_save(tmp_path / "b.npy", np.zeros((2, 4), dtype=int)), of=Npy())
    assert [item.num_tokens for item in rows] == [4, 4]
    _megatron_files(tmp_path / "c", documents=[[[1]], [[2, 3], [4, 5]]])
    items = _read(tmp_path / "c.idx", of=Megatron())
    assert items[-1].num_tokens == 4


def _megatron_files(
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


@pytest.mark.usefixtures("small_parts")
@_MANY
@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(0, 100), max_size=9), max_size=4), max_size=30
    ),
    code=st.sampled_from([1, 2, 3, 4, 5, 8]),
    rows_at_once=st.integers(1, 7),
    restart_at=st.integers(0, 5),
)
def test_megatron_documents_are_their_sequences_joined(
    tmp_path: Path,
    documents: list[list[list[int]]],
    code: int,
    rows_at_once: int,
    restart_at: int,
) -> None:
    _megatron_files(tmp_path / "a", documents=documents, code=code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.reading.megatron_index._ROWS_AT_ONCE", rows_at_once)
        items = _read(tmp_path / "a.idx", of=Megatron(), restart_at=restart_at)
    assert _contents(items) == [[*chain(*document)] for document in documents]
    assert [item.place for item in items] == list(range(len(documents)))


def test_megatron_is_read_by_the_path_of_either_file(tmp_path: Path) -> None:
    _megatron_files(tmp_path / "a.b_text", documents=[[[1, 2]], [[3]]], modes=bytes(2))
    for suffix in (".idx", ".bin"):
        items = _read(Path(f"{tmp_path}/a.b_text{suffix}"), of=Megatron())
        assert _contents(items) == [[1, 2], [3]]


_LENGTHS_AT = INDEX_HEADER.size
_POINTERS_AT = _LENGTHS_AT + 4 * 3
_BOUNDS_AT = _POINTERS_AT + 8 * 3


@pytest.mark.parametrize(
    ("place", "value", "detail"),
    [
        (0, b"MMXXX", "expected b'MMIDIDX\\x00\\x00' at its start"),
        (9, struct.pack("<Q", 2), "expected version 1, found 2"),
        (17, b"\x06", "expected integers, found dtype code 6 (float64)"),
        (17, b"\x09", "expected integers, found dtype code 9"),
        (18, struct.pack("<Q", 2**61), "bytes for 2305843009213693952 sequences"),
        (26, struct.pack("<Q", 2**64 - 1), "18446744073709551615 document bounds"),
        (_LENGTHS_AT, struct.pack("<i", 3), "sequence 1: expected pointer 12, found 8"),
        (_LENGTHS_AT, struct.pack("<i", -2), "sequence 0: expected a length, found -2"),
        (_LENGTHS_AT + 8, struct.pack("<i", 2**31 - 1), "expected 8589934604 bytes in a.bin"),
        (_POINTERS_AT, struct.pack("<q", 4), "sequence 0: expected pointer 0, found 4"),
        (_POINTERS_AT + 8, struct.pack("<q", -(2**63)), "sequence 1: expected pointer 8"),
        (_BOUNDS_AT, struct.pack("<q", 1), "expected documents from sequence 0 to 3"),
        (_BOUNDS_AT + 8, struct.pack("<q", 9), "expected non-decreasing bounds"),
        (_BOUNDS_AT + 8, struct.pack("<q", -(2**63)), "expected non-decreasing bounds"),
    ],
)
def test_a_damaged_index_is_refused_with_expected_and_found(
    tmp_path: Path, place: int, value: bytes, detail: str
) -> None:
    _megatron_files(tmp_path / "a", documents=[[[1, 2]], [[3, 4], [5]]])
    idx = tmp_path / "a.idx"
    content = bytearray(idx.read_bytes())
    content[place : place + len(value)] = value
    idx.write_bytes(content)
    bad = _only_bad(_read(idx, of=Megatron()))
    assert bad.reason == "broken Megatron index" and detail in bad.detail


def test_a_pair_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    _megatron_files(tmp_path / "a", documents=[[[1, 2]], [[3]]])
    idx, data = tmp_path / "a.idx", tmp_path / "a.bin"
    whole = idx.read_bytes()
    idx.write_bytes(whole[:-8])
    assert "expected 82 bytes" in _only_bad(_read(idx, of=Megatron())).detail
    idx.write_bytes(whole)
    data.write_bytes(data.read_bytes()[:-4])
    assert "expected 12 bytes in a.bin, found 8" in _only_bad(_read(idx, of=Megatron())).detail
    data.unlink()
    assert "expected a.bin next to it" in _only_bad(_read(idx, of=Megatron())).detail


def test_images_among_the_sequences_are_refused(tmp_path: Path) -> None:
    _megatron_files(tmp_path / "a", documents=[[[1, 2]], [[3]]], modes=b"\x00\x01")
    bad = _only_bad(_read(tmp_path / "a.idx", of=Megatron()))
    assert bad.detail == "sequence 1: expected text, found mode 1"


def _only_our_errors(path: Path, *, of: Format) -> None:
    for split_after in (None, 0):
        for item in _read(path, of=of, split_after=split_after):
            assert isinstance(item, (Document, BadInput))
            assert not isinstance(item, Document) or item.content.nbytes <= path.stat().st_size


@_MANY
@given(data=st.data())
def test_no_damage_to_an_index_raises_or_asks_for_memory(
    tmp_path: Path, data: st.DataObject
) -> None:
    _megatron_files(tmp_path / "a", documents=[[[1, 2]], [[3, 4], [5]], []])
    idx = tmp_path / "a.idx"
    content = _damaged(idx.read_bytes(), data=data)
    idx.write_bytes(content)
    for item in _read(idx, of=Megatron()):
        assert isinstance(item, BadInput) or item.content.nbytes <= 20


@_MANY
@given(data=st.data(), rows=st.sampled_from([(7,), (3, 4)]))
def test_no_damage_to_an_array_raises_or_asks_for_memory(
    tmp_path: Path, data: st.DataObject, rows: tuple[int, ...]
) -> None:
    whole = io.BytesIO()
    np.save(whole, np.zeros(rows, dtype="<u2"))
    path = tmp_path / "a.npy"
    path.write_bytes(_damaged(whole.getvalue(), data=data))
    _only_our_errors(path, of=Npy())


@_MANY
@given(
    header=st.one_of(
        st.text(max_size=200),
        st.builds(
            "{{'descr': {!r}, 'fortran_order': {!r}, 'shape': {!r}}}".format,
            st.sampled_from(["<u2", "|O", "V9999999999", "<i99", "(9999999,)i4", "", "<f8"]),
            st.sampled_from([True, False, 1]),
            st.lists(st.integers(-(2**70), 2**70), max_size=3).map(tuple),
        ),
        st.integers(1, 9000).map(lambda n: "(" * n),
    ),
    version=st.sampled_from([1, 2, 3]),
    length=st.none() | st.integers(0, 2**16 - 1),
)
def test_no_header_of_an_array_raises_or_asks_for_memory(
    tmp_path: Path, header: str, version: int, length: int | None
) -> None:
    content = header.encode("utf-8", "replace")
    size = struct.pack("<H" if version == 1 else "<I", length or len(content))
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + size + content + bytes(8))
    _only_our_errors(path, of=Npy())


def _damaged(content: bytes, *, data: st.DataObject) -> bytes:
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
