"""Named domains, fields of their own, ignore files, what `datasets` reads, masks and origins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet
import pytest

from data_prep.reading import file_list
from data_prep.reading.documents import BadInput, Document
from data_prep.reading.fields import Fields
from data_prep.reading.file_list import FileList
from data_prep.reading.folders import Globs, walk_folder
from data_prep.reading.formats import cut_files, read_part
from data_prep.reading.parts import InputFile
from data_prep.reading.sources import split_name
from data_prep.shards import open_corpus
from tests.data_prep.read_back import TEXT, contents

if TYPE_CHECKING:
    from datasets import Dataset

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def dataset(texts: list[str]) -> Dataset:
    import datasets  # loads pandas

    return datasets.Dataset.from_dict({"text": texts, "number": list(range(len(texts)))})


def test_saved_datasets_arrow_files_and_hub_streams_give_the_same_texts(
    tmp_path: Path, dataset: Dataset, texts: list[str]
) -> None:
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "hub").mkdir()
    dataset.to_parquet(tmp_path / "hub" / "train.parquet")
    arrows = sorted((tmp_path / "saved").glob("*.arrow"))
    assert contents(tmp_path / "saved") == texts
    assert contents(*arrows) == texts
    # A folder stands in for a name on the hub: the same call of the library, without a network.
    assert contents(f"hf:{tmp_path / 'hub'}:train") == texts


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        ({"body": ["x"], "id": [1]}, "--field text=body"),
        ({"turns": [[{"from": "human", "value": "x"}]], "tags": [["a"]]}, "--field messages=turns"),
        ({"input_ids": [[1, 2]], "mask": [[True, False]]}, "--field ids=input_ids"),
    ],
)
def test_a_missing_column_proposes_what_may_be_meant(
    tmp_path: Path, columns: dict[str, list[object]], flags: str
) -> None:
    import datasets

    dataset = datasets.Dataset.from_dict(columns)
    dataset.to_parquet(tmp_path / "hub" / "train.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    (tmp_path / "a.json").write_text(json.dumps([dataset[0]]))
    files = [
        InputFile(str(tmp_path / "hub" / "train.parquet"), "parquet", 100),
        InputFile(str(tmp_path / "saved"), "arrow", 100),
        InputFile(f"hf:{tmp_path / 'hub'}", "hub", 0),
        InputFile(str(tmp_path / "a.json"), "json", 100),
    ]
    for file in files:
        (found,) = (i for p in cut_files([file], fields=TEXT) for i in read_part(p, fields=TEXT))
        assert isinstance(found, BadInput), file
        assert found.detail.endswith(f"perhaps {flags}"), file
        assert ", ".join(sorted(columns)) in found.detail or file.kind == "parquet"


def test_a_stream_goes_on_in_its_middle(tmp_path: Path, dataset: Dataset, texts: list[str]) -> None:
    dataset.to_parquet(tmp_path / "train.parquet")
    file = InputFile(f"hf:{tmp_path}", "hub", 0)
    parts = cut_files([file], fields=TEXT, start_in_first=100)
    items = [item for part in parts for item in read_part(part, fields=TEXT)]
    assert [item.content for item in items if isinstance(item, Document)] == texts[100:]
    assert [item.place for item in items] == list(range(100, 120))


def test_a_saved_dict_of_splits_asks_which(tmp_path: Path, dataset: Dataset) -> None:
    from datasets import DatasetDict

    DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"holds the splits test, train; choose one, such as .*saved/test"
    ):
        contents(tmp_path / "saved")
    assert len(contents(tmp_path / "saved" / "train")) == len(dataset)


def test_a_broken_arrow_file_and_an_unknown_name_are_one_sentence(
    tmp_path: Path, run_cli: Cli, bpe_folder: Path
) -> None:
    (tmp_path / "a.arrow").write_bytes(b"nothing")
    build = ("build", "--tokenizer", bpe_folder, "--out", tmp_path / "out", "--workers", 1)
    code, _, err = run_cli(*build, "--input", tmp_path / "a.arrow")
    assert (code, "a.arrow:row 1: broken Arrow data" in err) == (2, True)
    code, _, err = run_cli(*build, "--input", f"hf:{tmp_path / 'nowhere'}")
    assert (code, "datasets cannot open it" in err) == (2, True)


@pytest.mark.parametrize("name", ["an a.arrow", "an a.feather", "an a.orc"])
def test_a_file_of_another_kind_of_arrow_is_refused_with_a_command_that_converts(
    tmp_path: Path, run_cli: Cli, bpe_folder: Path, texts: list[str], name: str
) -> None:
    table = pyarrow.table({"text": texts})
    write = pyarrow.orc.write_table if name.endswith("orc") else pyarrow.feather.write_feather
    write(table, str(tmp_path / name))
    build = ("build", "--tokenizer", bpe_folder, "--out", tmp_path / "out", "--workers", 1)
    code, _, err = run_cli(*build, "--input", tmp_path / name)
    assert code == 2
    command = re.findall("onvert it with `(.*?)`", err)[0].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert contents(tmp_path / "converted.parquet") == texts


def test_rows_of_parquet_come_once_each_however_they_are_cut(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.reading.parquet._SLICE_BYTES", 1000)
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    file = InputFile(str(tmp_path / "a.parquet"), "parquet", 1000)
    parts = list(cut_files([file], fields=TEXT))
    assert len(parts) > 6
    items = [item for part in parts for item in read_part(part, fields=TEXT)]
    assert [item.content for item in items if isinstance(item, Document)] == texts
    assert [item.place for item in items] == list(range(len(texts)))


@pytest.mark.parametrize("part_bytes", [1, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_come_once_each_however_the_bytes_are_cut(
    tmp_path: Path,
    tricky: tuple[str, ...],
    part_bytes: int,
    packed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also from the end of any part, which is where an unfinished build goes on."""
    import gzip

    monkeypatch.setattr("data_prep.reading.lines.PART_BYTES", part_bytes)
    content = "\n\n".join(json.dumps({"text": text}) for text in tricky).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(content) if packed else content)
    if packed:
        path = path.rename(tmp_path / "a.jsonl.gz")
    kind = "stream" if packed else "lines"
    file = InputFile(str(path), kind, path.stat().st_size)

    def read(start: int) -> list[tuple[int, object]]:
        parts = cut_files([file], fields=TEXT, start_in_first=start)
        items = [item for part in parts for item in read_part(part, fields=TEXT)]
        return [(item.place, item.content) for item in items if isinstance(item, Document)]

    whole = read(0)
    assert [text for _, text in whole if text] == list(tricky)
    parts = list(cut_files([file], fields=TEXT))
    for part in parts[:: -(-len(parts) // 12)]:
        assert read(part.end) == [pair for pair in whole if pair[0] >= part.end]


def test_domains_lie_together_and_keep_their_names(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    run_cli: Cli,
    bpe_folder: Path,
) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts[:30])
    write_jsonl(tmp_path / "b.jsonl", texts[30:50])
    write_jsonl(tmp_path / "c.jsonl", texts[50:])
    inputs = [f"{name}={tmp_path / file}" for name, file in
              (("web", "a.jsonl"), ("code", "b.jsonl"), ("web", "c.jsonl"))]  # fmt: skip
    code, out, err = run_cli(
        *("build", "--input", *inputs, "--tokenizer", bpe_folder, "--out", tmp_path / "mix"),
        *("--workers", 1, "--val-frac", 0.3),
    )
    assert code == 0, err
    assert "domain     code: 20 documents" in out
    corpus = open_corpus(tmp_path / "mix")
    assert corpus.domains == ("web", "code")
    for split in ("train", "val"):
        ranges = corpus.domain_documents(split)
        assert ranges["web"].stop == ranges["code"].start
        assert ranges["code"].stop == corpus.num_documents(split)
        for name, numbers in ranges.items():
            files = {Path(corpus.origin(i, split).path).name for i in numbers}
            assert files <= ({"a.jsonl", "c.jsonl"} if name == "web" else {"b.jsonl"})
    ledgers = {domain.name: domain.ledger for domain in corpus.manifest.domains}
    assert (ledgers["web"].num_documents_kept, ledgers["code"].num_documents_kept) == (100, 20)


def test_ignore_files_hide_what_git_would_hide(tmp_path: Path) -> None:
    files = ("a.py", "b.log", "build/x.py", "src/a.py", "src/gen/g.py", "src/keep.log", "src/k.tmp")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("text")
    (tmp_path / ".gitignore").write_text("*.log\n/build/\n*.tmp\n")
    (tmp_path / "src" / ".gitignore").write_text("gen/\n!keep.log\n")

    def found(**globs: object) -> list[str]:
        met = walk_folder(tmp_path, globs=Globs(**globs))  # type: ignore[arg-type]
        paths = [one.path for one in met if not one.why_not]
        return sorted(path.relative_to(tmp_path).as_posix() for path in paths)

    assert found() == ["a.py", "src/a.py", "src/keep.log"]
    assert found(heed_ignore_files=False) == sorted(files)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [name for name in listed.stdout.split() if not name.endswith(".gitignore")] == found()


def test_a_name_in_front_of_a_path_is_a_domain(tmp_path: Path) -> None:
    assert split_name("web=data/a.jsonl") == ("web", "data/a.jsonl")
    assert split_name("data/a.jsonl") == ("main", "data/a.jsonl")
    odd = tmp_path / "a=b.jsonl"
    odd.write_text("")
    assert split_name(str(odd)) == ("main", str(odd))
    with pytest.raises(ValueError, match="use only letters"):
        split_name("we/b=data")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--field", "texts=body"], "unknown role 'texts'.*did you mean text?"),
        (["--field", "text"], r"expected \[DOMAIN\.\]ROLE=KEY"),
        (["--field", "chat.messages=m"], "no such domain; there are main"),
        (["--field", "prompt=q"], "prompt and completion go together"),
        (["--ids-key", "i", "--text-key", "t"], "found text and ids"),
        (["--field", "loss_mask=m"], "needs one of text, ids"),
        (["--field", "text=t", "--field", "labels=m"], "only with ids"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(
    tmp_path: Path, run_cli: Cli, bpe_folder: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    build = ("build", "--input", tmp_path / "a.txt", "--tokenizer", bpe_folder)
    code, _, err = run_cli(*build, "--out", tmp_path / "out", *flags)
    assert code == 2
    import re

    assert re.search(message, err), err


def test_reading_through_datasets_never_loads_torch(tmp_path: Path, dataset: Dataset) -> None:
    dataset.save_to_disk(tmp_path / "saved")
    program = f"""
import sys
from data_prep.reading.arrow import Arrow
from data_prep.reading.fields import Fields
from data_prep.reading.parts import InputFile
fields = Fields(text="text")
file = InputFile({str(tmp_path / "saved")!r}, "arrow", 1000)
parts = list(Arrow().cut(file, start=0, fields=fields))
assert sum(1 for part in parts for _ in Arrow().read(part, fields=fields)) == {len(dataset)}
assert "torch" not in sys.modules, "torch was imported"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_flat_array_splits_behind_each_eos_of_the_tokenizer(
    tmp_path: Path, build_corpus: Callable[..., Path], bpe_folder: Path
) -> None:
    from data_prep.tokenizing.tokenizer import load_tokenizer

    eos = load_tokenizer(bpe_folder).special_ids.eos
    assert eos is not None
    np.save(tmp_path / "a.npy", np.array([5, 6, eos, 7, eos, 8], dtype=np.uint16))
    ids = Fields(ids="ids")
    one = open_corpus(build_corpus(tmp_path / "a.npy", fields=ids, out=tmp_path / "one"))
    assert one.num_documents() == 1
    many = open_corpus(build_corpus(tmp_path / "a.npy", fields=ids, split_on_eos=True))
    assert [many.document(i).tolist() for i in range(3)] == [[5, 6, eos], [7, eos], [8]]


def test_a_long_list_of_files_is_read_in_order_from_any_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_list, "_BLOCK_FILES", 3)
    monkeypatch.setattr(file_list, "_MEMORY_BYTES", 100)  # the rest is on disk
    for number in (0, 1, 3, 4, 10):
        listed = FileList(first_number=5)
        globs = Globs(include=("*.md",))
        files = [InputFile(f"\udcff{i}.zip", "archive", i, 7, 5 + i, globs) for i in range(number)]
        for file in files:
            listed.append(replace(file, number=0))
        assert (len(listed), listed.num_bytes) == (number, sum(range(number)))
        assert listed.next_number == 5 + number
        for first in range(number + 7):
            assert list(listed.from_number(first)) == [f for f in files if f.number >= first]
        both = zip(listed, listed, strict=True)  # at once
        assert all(one == other for one, other in both)
        del both
        scratch = listed._scratch
        del listed
        assert scratch.closed
