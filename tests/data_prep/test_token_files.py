"""Flat files of ids give their documents back, and damaged ones are named, never believed."""

from __future__ import annotations

import io
import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.reading import token_files
from data_prep.reading.fields import Fields
from data_prep.reading.parts import InputFile
from data_prep.reading.token_files import Megatron, Npy
from tests.data_prep.parts import (
    MANY,
    contents_of,
    damaged,
    megatron_files,
    only_bad,
    only_our_errors,
    read_all,
)


def _save(path: Path, ids: Any, **options: Any) -> Path:
    np.save(path, ids, **options)
    return path


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u2", "<i4", ">i8", "u8"])
def test_rows_of_an_array_are_documents_in_any_integer_type(
    tmp_path: Path, small_parts: None, dtype: str
) -> None:
    ids = np.arange(35).reshape(7, 5).astype(dtype)
    items = read_all(_save(tmp_path / "a.npy", ids), of=Npy(), restart_at=1)
    assert contents_of(items) == ids.tolist()
    assert [item.place for item in items] == list(range(7))


def test_one_dimension_is_one_document(tmp_path: Path, small_parts: None) -> None:
    path = _save(tmp_path / "a.npy", np.arange(100, dtype="<u2"))
    assert contents_of(read_all(path, of=Npy())) == [list(range(100))]
    assert read_all(_save(tmp_path / "b.npy", np.zeros(0, dtype=int)), of=Npy()) == []


@pytest.mark.usefixtures("small_parts")
@MANY
@given(
    ids=st.lists(st.integers(0, 3), max_size=80),
    dtype=st.sampled_from(["u1", "<u2", "<i4", "<i8"]),
    restart_at=st.integers(0, 5),
)
def test_a_stream_is_cut_behind_each_eos_wherever_parts_end(
    tmp_path: Path, ids: list[int], dtype: str, restart_at: int
) -> None:
    path = _save(tmp_path / "a.npy", np.array(ids, dtype=dtype))
    items = read_all(path, of=Npy(), split_after=0, restart_at=restart_at)
    ends = [i + 1 for i, token in enumerate(ids) if token == 0]
    bounds = sorted({0, *ends, len(ids)})
    assert contents_of(items) == [ids[begin:end] for begin, end in pairwise(bounds)]
    assert [item.place for item in items] == bounds[:-1]


def test_ids_are_reported_as_they_are_not_wrapped(tmp_path: Path) -> None:
    negative = np.array([[1, -5]], dtype="<i4")
    huge = np.array([[1, 2**63 + 9]], dtype="<u8")
    assert contents_of(read_all(_save(tmp_path / "a.npy", negative), of=Npy())) == [[1, -5]]
    assert contents_of(read_all(_save(tmp_path / "b.npy", huge), of=Npy())) == [[1, 2**63 + 9]]


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
    bad = only_bad(read_all(_save(tmp_path / "a.npy", ids), of=Npy()))
    assert bad.reason == "broken .npy" and detail in bad.detail


def test_a_cut_or_foreign_array_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.npy", np.arange(10))
    path.write_bytes(path.read_bytes()[:-1])
    bad = only_bad(read_all(path, of=Npy()))
    assert bad.detail == "expected 208 bytes for shape (10,), found 207"
    path.write_bytes(b"not an array at all")
    assert "magic" in only_bad(read_all(path, of=Npy())).detail


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    array = _save(tmp_path / "a.npy", np.arange(4096).reshape(512, 8))
    megatron_files(tmp_path / "b", documents=[[[1, 2, 3]]] * 100)
    for path, shrinks, reader in (
        (array, array, Npy()),
        (tmp_path / "b.idx", tmp_path / "b.bin", Megatron()),
    ):
        file = InputFile(str(path), "npy", path.stat().st_size)
        part = next(iter(reader.cut(file, start=0, fields=Fields(ids="ids"))))
        os.truncate(shrinks, 200)
        assert "found 200" in only_bad(list(reader.read(part, fields=Fields(ids="ids")))).detail


def test_a_stream_too_long_for_memory_is_refused_with_the_remedy(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "_MAX_DOCUMENT_IDS", 3)
    bad = only_bad(read_all(_save(tmp_path / "a.npy", np.arange(5)), of=Npy()))
    assert bad.num_tokens == 5 and "--split-on-eos" in bad.detail
    rows = read_all(_save(tmp_path / "b.npy", np.zeros((2, 4), dtype=int)), of=Npy())
    assert [item.num_tokens for item in rows] == [4, 4]
    megatron_files(tmp_path / "c", documents=[[[1]], [[2, 3], [4, 5]]])
    items = read_all(tmp_path / "c.idx", of=Megatron())
    assert items[-1].num_tokens == 4


@MANY
@given(data=st.data(), rows=st.sampled_from([(7,), (3, 4)]))
def test_no_damage_to_an_array_raises_or_asks_for_memory(
    tmp_path: Path, data: st.DataObject, rows: tuple[int, ...]
) -> None:
    whole = io.BytesIO()
    np.save(whole, np.zeros(rows, dtype="<u2"))
    path = tmp_path / "a.npy"
    path.write_bytes(damaged(whole.getvalue(), data=data))
    only_our_errors(path, of=Npy())


@MANY
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
    only_our_errors(path, of=Npy())
