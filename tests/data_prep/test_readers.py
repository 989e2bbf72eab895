"""Every input format gives the same documents, and every bad one is named by file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.reading.documents import BadInput, Document
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.formats import cut_files, name_place, read_part
from data_prep.reading.sources import find_domains

TEXT = Fields(text="text")
IDS = Fields(ids="input_ids")


def _items(
    *inputs: str | Path, globs: Globs | None = None, fields: Fields = TEXT
) -> list[tuple[str, Document | BadInput]]:
    """Every document or fault with its place as people read it."""
    domains = find_domains(inputs, globs=globs or Globs(), fields_of={}, default=fields)
    return [
        (name_place(part.file, item.place), item)
        for domain in domains
        for part in cut_files(domain.files, fields=domain.fields)
        for item in read_part(part, fields=domain.fields)
    ]


def _read(*inputs: str | Path, **options: Any) -> list[Any]:
    """Contents of all documents; a fault is a ValueError of its sentence."""
    contents = []
    for where, item in _items(*inputs, **options):
        if isinstance(item, BadInput):
            raise ValueError(item.sentence(where))
        contents.append(item.content)
    return contents


@pytest.fixture
def jsonl(tmp_path: Path, tricky: tuple[str, ...], write_jsonl: Callable[..., Path]) -> Path:
    return write_jsonl(tmp_path / "plain.jsonl", tricky)


def test_jsonl_gives_its_texts_back(jsonl: Path, tricky: tuple[str, ...]) -> None:
    assert _read(jsonl) == list(tricky)


def test_compressed_jsonl_gives_its_texts_back(jsonl: Path, tricky: tuple[str, ...]) -> None:
    content = jsonl.read_bytes()
    half = len(content) // 2
    gz, zst = jsonl.with_suffix(".jsonl.gz"), jsonl.with_suffix(".jsonl.zst")
    # Two members and two frames: what `cat a.gz b.gz` makes.
    gz.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    frame = zstandard.ZstdCompressor().compress
    zst.write_bytes(frame(content[:half]) + frame(content[half:]))
    assert _read(gz) == list(tricky)
    assert _read(zst) == list(tricky)


def test_parquet_gives_its_texts_back(tmp_path: Path, tricky: tuple[str, ...]) -> None:
    table = pyarrow.table({"id": range(len(tricky)), "text": list(tricky)})
    pyarrow.parquet.write_table(table, tmp_path / "docs.parquet", row_group_size=2)
    assert _read(tmp_path / "docs.parquet") == list(tricky)


def test_text_files_come_back_byte_for_byte(tmp_path: Path, tricky: tuple[str, ...]) -> None:
    for number, text in enumerate(tricky):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    assert _read(tmp_path) == list(tricky)
    assert _read(tmp_path / "0.txt") == [tricky[0]]


def test_a_source_tree_is_read_in_sorted_order_without_hidden_and_binary_files(
    tmp_path: Path,
) -> None:
    for name in ("b.py", "a.py", "lib/z.c", ".git/config", "__pycache__/a.pyc", "x.png", ".env"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert _read(tmp_path) == ["a.py", "b.py", "lib/z.c"]


def test_globs_choose_files_and_leave_out_folders(tmp_path: Path) -> None:
    for name in ("a.py", "a.c", "tests/t.py", "lib/b.py", "lib/tests/u.py", "lib/skip_me.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    globs = Globs(include=("*.py",), exclude=("tests", "skip_*"))
    assert _read(tmp_path, globs=globs) == ["a.py", "lib/b.py"]
    assert _read(tmp_path, globs=Globs(include=("lib/*.py",), exclude=("tests",))) == [
        "lib/b.py",
        "lib/skip_me.py",
    ]


def test_ids_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [0, 5, 7]}\n{"input_ids": []}\n')
    documents = _read(path, fields=IDS)
    assert [ids.tolist() for ids in documents] == [[0, 5, 7], []]
    table = pyarrow.table({"input_ids": [np.array([1, 2], dtype=np.int32)]})
    pyarrow.parquet.write_table(table, tmp_path / "ids.parquet")
    documents = _read(tmp_path / "ids.parquet", fields=IDS)
    assert [ids.tolist() for ids in documents] == [[1, 2]]


GOOD = b'{"text": "good"}\n'
BAD_LINES = {
    "broken JSON": b'{"text": "cut off\n',
    "broken JSON: .*(recursion|nest|Expecting)": b"[" * 100_000 + b"\n",
    "invalid UTF-8: 0xff at byte 11": b'{"text": "\xff"}\n',
    "missing key 'text': keys: id, name$": b'{"id": 1, "name": "x"}\n',
    "missing key 'text': keys: body, id; perhaps --field text=body$": b'{"id": 1, "body": "x"}\n',
    "missing .* keys: turns; perhaps --field messages=turns$": b'{"turns": [{"from": "human"}]}\n',
    "missing .* keys: input_ids; perhaps --field ids=input_ids$": b'{"input_ids": [1]}\n',
    "missing .* keys: mask$": b'{"mask": [true]}\n',
    "missing .*; perhaps --field 'messages=my turns'$": b'{"my turns": [{"from": "human"}]}\n',
    "missing .*; perhaps --field prompt=instruction --field completion=output$": (
        b'{"instruction": "x", "output": "y"}\n'
    ),
    "not text: 'text' holds int": b'{"text": 7}\n',
    "not text: 'text' holds NoneType": b'{"text": null}\n',
    "not a record: expected an object with 'text', found list": b'["text"]\n',
    r"lone surrogate: U\+D83D at character 3": b'{"text": "abc\\ud83d"}\n',
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_line_is_named_by_file_line_and_reason(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(GOOD + GOOD + BAD_LINES[reason] + GOOD)
    with pytest.raises(ValueError, match=rf"docs\.jsonl:3: {reason}"):
        _read(path)
    items = [item for _, item in _items(path)]
    assert [item.content for item in items if isinstance(item, Document)] == ["good"] * 3


@pytest.mark.parametrize("value", ['"text"', "[1.5]", "[1, null]", "[99999999999999999999]", "7"])
def test_bad_ids_are_named_by_file_and_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text(f'{{"input_ids": [1]}}\n{{"input_ids": {value}}}\n')
    with pytest.raises(ValueError, match=r"ids\.jsonl:2: not ids"):
        _read(path, fields=IDS)


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"\x1f\x8b", r"gzip \(\.gz\): add its suffix to the name"),
        (b"\x28\xb5\x2f\xfd", r"Zstandard \(\.zst\): add"),
        (b"BZh", r"bzip2 \(\.bz2\): add"),
        (b"\xfd7zXZ\x00", r"xz \(\.xz\): add"),
        (b"PK\x03\x04", "a zip archive: unpack it"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_compressed_bytes_under_a_plain_name_are_recognised(
    tmp_path: Path, magic: bytes, name: str, suffix: str
) -> None:
    path = tmp_path / f"docs{suffix}"
    path.write_bytes(magic + b"\xff\n{}\n")
    with pytest.raises(ValueError, match=f"invalid UTF-8: 0x.*; the file begins like {name}"):
        _read(path)
    path.write_bytes(b"ab\n" + magic + b"\xff\n")
    with pytest.raises(ValueError, match=r"broken JSON|invalid UTF-8") as error:
        _read(path)
    assert "begins like" not in str(error.value)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone \xef\xbb\xbf two")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert _read(tmp_path) == ["one \ufeff two", "one"]


def test_invalid_utf8_in_a_text_file_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(ValueError, match=r"a\.txt: invalid UTF-8: 0xe9 at line 3"):
        _read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_compressed_file_is_an_error_and_not_a_short_corpus(
    tmp_path: Path, suffix: str
) -> None:
    lines = b"".join(json.dumps({"text": f"document {n}"}).encode() + b"\n" for n in range(5000))
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(pack(lines)[:-100])
    with pytest.raises(ValueError, match=r"docs\.jsonl\.\w+(:\d+)?: broken"):
        _read(path)


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "docs.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "c"]}), path)
    with pytest.raises(ValueError, match=r"docs\.parquet:row 2: not text"):
        _read(path)
    with pytest.raises(
        ValueError, match=r"docs\.parquet:row 1: missing column 'body': columns: text"
    ):
        _read(path, fields=Fields(text="body"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"docs\.parquet:row 1: broken Parquet"):
        _read(path)


def test_parquet_with_several_columns_of_one_name_is_named(tmp_path: Path) -> None:
    columns = [pyarrow.array([value]) for value in ("a", "b", "c")]
    table = pyarrow.Table.from_arrays(columns, names=["text", "text", "body"])
    pyarrow.parquet.write_table(table, tmp_path / "docs.parquet")
    with pytest.raises(ValueError, match=r"docs\.parquet:row 1: several columns 'text': rename"):
        _read(tmp_path / "docs.parquet")
    assert _read(tmp_path / "docs.parquet", fields=Fields(text="body")) == ["c"]


def test_a_missing_path_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        _read(tmp_path / "nowhere.jsonl")
    (tmp_path / "docs.xyz").write_text("text")
    with pytest.raises(ValueError, match=r"unknown suffix '\.xyz'; known: \.jsonl"):
        _read(tmp_path / "docs.xyz")
    assert _read(tmp_path / "docs.xyz", globs=Globs(include=("*.xyz",))) == ["text"]
    with pytest.raises(ValueError, match="contains no file to read"):
        _read(tmp_path, globs=Globs(include=("*.py",)))
