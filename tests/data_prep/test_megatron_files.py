"""Pairs of Megatron-LM as inputs: whole, damaged, or of something else."""

from __future__ import annotations

import struct
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.reading.documents import BadInput
from data_prep.reading.megatron_index import INDEX_HEADER
from data_prep.reading.token_files import Megatron
from tests.data_prep.parts import (
    MANY,
    contents_of,
    damaged,
    megatron_files,
    only_bad,
    read_all,
)


@pytest.mark.usefixtures("small_parts")
@MANY
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
    megatron_files(tmp_path / "a", documents=documents, code=code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.reading.megatron_index._ROWS_AT_ONCE", rows_at_once)
        items = read_all(tmp_path / "a.idx", of=Megatron(), restart_at=restart_at)
    assert contents_of(items) == [[*chain(*document)] for document in documents]
    assert [item.place for item in items] == list(range(len(documents)))


def test_megatron_is_read_by_the_path_of_either_file(tmp_path: Path) -> None:
    megatron_files(tmp_path / "a.b_text", documents=[[[1, 2]], [[3]]], modes=bytes(2))
    for suffix in (".idx", ".bin"):
        items = read_all(Path(f"{tmp_path}/a.b_text{suffix}"), of=Megatron())
        assert contents_of(items) == [[1, 2], [3]]


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
    megatron_files(tmp_path / "a", documents=[[[1, 2]], [[3, 4], [5]]])
    idx = tmp_path / "a.idx"
    content = bytearray(idx.read_bytes())
    content[place : place + len(value)] = value
    idx.write_bytes(content)
    bad = only_bad(read_all(idx, of=Megatron()))
    assert bad.reason == "broken Megatron index" and detail in bad.detail


def test_a_pair_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    megatron_files(tmp_path / "a", documents=[[[1, 2]], [[3]]])
    idx, data = tmp_path / "a.idx", tmp_path / "a.bin"
    whole = idx.read_bytes()
    idx.write_bytes(whole[:-8])
    assert "expected 82 bytes" in only_bad(read_all(idx, of=Megatron())).detail
    idx.write_bytes(whole)
    data.write_bytes(data.read_bytes()[:-4])
    assert "expected 12 bytes in a.bin, found 8" in only_bad(read_all(idx, of=Megatron())).detail
    data.unlink()
    assert "expected a.bin next to it" in only_bad(read_all(idx, of=Megatron())).detail


def test_images_among_the_sequences_are_refused(tmp_path: Path) -> None:
    megatron_files(tmp_path / "a", documents=[[[1, 2]], [[3]]], modes=b"\x00\x01")
    bad = only_bad(read_all(tmp_path / "a.idx", of=Megatron()))
    assert bad.detail == "sequence 1: expected text, found mode 1"


@MANY
@given(data=st.data())
def test_no_damage_to_an_index_raises_or_asks_for_memory(
    tmp_path: Path, data: st.DataObject
) -> None:
    megatron_files(tmp_path / "a", documents=[[[1, 2]], [[3, 4], [5]], []])
    idx = tmp_path / "a.idx"
    content = damaged(idx.read_bytes(), data=data)
    idx.write_bytes(content)
    for item in read_all(idx, of=Megatron()):
        assert isinstance(item, BadInput) or item.content.nbytes <= 20
