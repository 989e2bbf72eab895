"""Records of a .json file: any layout and encoding, each once however it is cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.reading.documents import Document
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.formats import cut_files, read_part
from data_prep.reading.sources import find_domains
from tests.data_prep.read_back import PACK, TEXT, read_inputs

RECORDS = [{"text": "one", "id": 1}, {"text": "two"}, {"text": "thr\u00e9e", "more": [1, {}]}]


FORMS = {
    "array": json.dumps(RECORDS),
    "indented array": "\ufeff" + json.dumps(RECORDS, indent=2, ensure_ascii=False) + "\n",
    "lines": "\n".join(json.dumps(record) for record in RECORDS),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["", *PACK])
def test_a_json_file_gives_its_records(tmp_path: Path, form: str, suffix: str) -> None:
    """In a folder and named alone."""
    path = tmp_path / "data" / f"records.json{suffix}"
    path.parent.mkdir()
    content = FORMS[form].encode()
    path.write_bytes(PACK[suffix](content) if suffix else content)
    texts = [record["text"] for record in RECORDS]
    assert read_inputs(path)[0] == read_inputs(path.parent)[0] == texts
    ids = Fields(ids="ids")
    path.write_bytes(b"" if not suffix else PACK[suffix](b'[{"ids": [1, 2]}]'))
    if suffix:
        assert [found.tolist() for found in read_inputs(path.parent, fields=ids)[0]] == [[1, 2]]
    assert read_inputs(path)[1].num_files == 1


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_one_record(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"text": "alone", "id": 1}, indent=indent))
    assert read_inputs(tmp_path)[0] == ["alone"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"id": 1}]', "missing key 'text': keys: id"),
        ('{\n"name": "package"\n}', "missing key 'text': keys: name"),
        ('{"id": 1}\n{"id": 2}', "missing key 'text': keys: id"),
        ('["a", "b"]', "not a record: expected an object, found str"),
        ("12", "not a record: expected an object, found int"),
        ('[{"text": "a"}', "broken JSON"),
        ('[{"text": "a"} {"text": "b"}]', "broken JSON: expected ',' or ']'"),
        ('[{"text": "a"}] []', "broken JSON: found '[' after the end"),
        ("// a comment\n{}", "broken JSON"),
        ('[{"text": "\xff"}]'.encode("latin-1"), "invalid UTF-8"),
        ("[" * 100_000, "broken JSON"),
    ],
)
def test_a_json_file_that_holds_no_records_is_named_with_the_way_out(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "a.json").write_bytes(raw)
    sentences = [item for item in read_inputs(tmp_path)[0] if "a.json:" in str(item)]
    assert reason in sentences[0]
    if "UTF-8" not in reason:
        assert "--json-as-text" in sentences[0]
        assert read_inputs(tmp_path, globs=Globs(json_as_text=True))[0] == [content]
        assert read_inputs(tmp_path / "a.json", globs=Globs(json_as_text=True))[0] == [content]


@pytest.mark.parametrize("read_chars", [1, 7, 100])
def test_records_of_an_array_come_once_each_however_it_is_cut(
    tmp_path: Path, tricky: tuple[str, ...], read_chars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the end of any part, which is where an unfinished build goes on."""
    monkeypatch.setattr("data_prep.reading.json_file._READ_CHARS", read_chars)
    monkeypatch.setattr("data_prep.reading.streamed.PART_BYTES", 300)
    records = [{"text": text, "n": -1.25e3} for text in tricky]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    (domain,) = find_domains([tmp_path], globs=Globs(), fields_of={}, default=TEXT)
    parts = list(cut_files(domain.files, fields=TEXT))
    assert len(parts) > 2
    for start in [0, *(part.end for part in parts)]:
        later = cut_files(domain.files, fields=TEXT, start_in_first=start)
        items = [item for part in later for item in read_part(part, fields=TEXT)]
        assert [item.place for item in items] == list(range(start, len(tricky)))
        assert [item.content for item in items if isinstance(item, Document)] == list(
            tricky[start:]
        )
