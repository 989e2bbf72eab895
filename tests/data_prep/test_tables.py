"""Tables, fields within fields and conversations of another form: read as plain records are."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.reading.documents import BadInput, Document, document_of
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.formats import cut_files, read_part
from data_prep.reading.sources import find_domains
from tests.data_prep.read_back import PACK, TEXT, read_inputs

TEXTS = ["one, two", 'a "word"\nof two lines', "", "\u00e9\ttab", "x" * 200_000]


def table(rows: list[list[str]], *, delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue().encode("utf-8-sig")


@pytest.mark.parametrize("suffix", ["", *PACK])
@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.TSV", "\t")])
def test_a_table_gives_its_rows(tmp_path: Path, name: str, delimiter: str, suffix: str) -> None:
    rows = [["id", "text"], *([str(i), text] for i, text in enumerate(TEXTS))]
    content = table(rows, delimiter=delimiter)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACK[suffix](content) if suffix else content)
    assert read_inputs(path)[0] == TEXTS


def test_a_table_is_read_on_from_any_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.reading.streamed.PART_BYTES", 100_000)
    texts = [f"{i} " + "word\n" * 6_000 for i in range(12)]
    path = tmp_path / "t.csv"
    path.write_bytes(table([["text"], *([text] for text in texts)]))
    (domain,) = find_domains([path], globs=Globs(), fields_of={}, default=TEXT)
    parts = list(cut_files(domain.files, fields=TEXT))
    assert len(parts) > 2
    for done in range(len(parts)):
        left = cut_files(domain.files, fields=TEXT, start_in_first=parts[done].end)
        items = [
            item for part in [*parts[: done + 1], *left] for item in read_part(part, fields=TEXT)
        ]
        assert [item.content for item in items] == texts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"id,words\n1,a\n", "missing column 'text': columns: id, words"),
        (b"id,body\n1,a\n", "the first row names them; perhaps --field text=body"),
        (b"", "missing column 'text': columns: none"),
        (b"text,text\na,b\n", "several columns 'text'"),
        (b"text,id\na\n", "row of another length: 1 fields, the first row has 2"),
        (b'text\n"a', "broken table"),
        (b'text\n"a"b\nc\n', "no row from here on is read"),
        (b"text\n\xff\n", "invalid UTF-8"),
        ("text\na\n".encode("utf-16"), "invalid UTF-8: 0xff at line 1 of a field"),
    ],
)
def test_a_broken_table_is_told_by_its_row(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    (found,) = read_inputs(path)[0]
    assert found.startswith(f"{path}:row 1: ")
    assert reason in found


def test_bytes_that_are_no_utf8_cost_their_own_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"text,id\none,1\nb\xe9d,2\nok,\xe9\nthree,3\n")
    first, bad, *others = read_inputs(path)[0]
    assert [first, *others] == ["one", "ok", "three"]
    assert bad.startswith(f"{path}:row 2: invalid UTF-8: 0xe9 at line 1 of a field")


def test_what_a_table_cannot_hold_is_refused_and_text_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(table([["text", "ids"], ["a", "[1]"]]))
    with pytest.raises(ValueError, match="holds text, no lists of ids; use JSON lines"):
        read_inputs(path, fields=Fields(ids="ids"))
    whole = path.read_bytes().decode("utf-8-sig")
    assert read_inputs(path, globs=Globs(include=("*.csv",)))[0] == [whole]
    assert read_inputs(tmp_path, globs=Globs(include=("*.csv",)))[0] == [whole]


RECORDS = [{"meta": {"text": "one", "id": 1}}, {"meta": {"text": "two", "id": 2}, "text": "not"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
def test_a_field_within_a_field_is_named_with_a_dot(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = pyarrow.Table.from_pylist(RECORDS)
    if name == "a.jsonl":
        path.write_text("\n".join(map(json.dumps, RECORDS)))
    elif name == "a.json":
        path.write_text(json.dumps(RECORDS))
    elif name == "a.parquet":
        pyarrow.parquet.write_table(rows, path)
    else:
        with (
            pyarrow.OSFile(str(path), "wb") as file,
            pyarrow.ipc.new_stream(file, rows.schema) as to,
        ):
            to.write_table(rows)
    assert read_inputs(path, fields=Fields(text="meta.text"))[0] == ["one", "two"]
    for found in read_inputs(path, fields=Fields(text="meta.texts"))[0]:
        assert "missing key 'meta.texts': keys of 'meta': " in found


def test_a_field_whose_own_name_has_a_dot_comes_first() -> None:
    record = {"a.b": "own", "a": {"b": "within"}}
    assert document_of(record, place=0, wanted=Fields(text="a.b")) == Document("own", place=0)


def test_a_sharegpt_conversation_is_one_of_messages() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "Because."},
        {"from": "observation", "value": "42"},
    ]
    found = document_of({"c": turns}, place=0, wanted=Fields(messages="c"))
    roles = ["system", "user", "assistant", "tool"]
    expected = [
        {"role": role, "content": turn["value"]} for role, turn in zip(roles, turns, strict=True)
    ]
    assert found == Document(expected, place=0)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"from": "function_call", "value": "{}"}, "message 1 is from 'function_call', known are"),
        ({"from": ["gpt"], "value": "x"}, "message 1 is from ['gpt'], known are"),
        ({"from": "gpt", "value": None}, "message 1 has no text in 'value'"),
        ({"role": "assistant", "content": "x"}, "message 1 is from None, known are"),
    ],
)
def test_a_turn_of_nobody_known_is_refused(turn: dict, reason: str) -> None:
    turns = [{"from": "human", "value": "Why?"}, turn]
    found = document_of({"c": turns}, place=0, wanted=Fields(messages="c"))
    assert isinstance(found, BadInput)
    assert reason in found.detail


def test_names_of_both_forms_of_which_one_is_null() -> None:
    turns = [{"role": None, "from": "human", "value": "Why?", "content": None}]
    found = document_of({"c": turns}, place=0, wanted=Fields(messages="c"))
    assert found == Document([{"role": "user", "content": "Why?"}], place=0)


def test_an_answer_that_is_to_be_no_target_is_refused() -> None:
    answers = [{"role": "assistant", "content": "a"}, {"from": "gpt", "value": "a"}]
    asked = [{"role": "user", "content": "q"}, {"from": "human", "value": "q"}]
    for question, answer in zip(asked, answers, strict=True):
        turns = [{**question, "weight": 0}, {**answer, "weight": 1}, {**answer, "weight": None}]
        wanted = Fields(messages="c")
        assert isinstance(document_of({"c": turns}, place=0, wanted=wanted), Document)
        found = document_of({"c": [*turns, {**answer, "weight": 0}]}, place=0, wanted=wanted)
        assert isinstance(found, BadInput)
        assert "message 3 has the weight 0, but every answer is a target" in found.detail
