"""Every file met in a folder is read, or counted by the reason why not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.cleaning.contamination import Against, read_benchmark
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs, walk_folder
from data_prep.shards import open_corpus
from tests.data_prep.read_back import PACK, read_inputs

Cli = Callable[..., tuple[int, str, str]]


def _files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("inner", [".jsonl", ".json", ".txt", ".md"])
def test_every_compression_is_read_and_its_truncation_noticed(
    tmp_path: Path, suffix: str, inner: str
) -> None:
    text = "".join(f"line {n} {n * n}\n" for n in range(5000))
    content = (json.dumps({"text": text}) + "\n" if "json" in inner else text).encode()
    path = tmp_path / f"a{inner}{suffix}"
    packed = PACK[suffix](content[:1000]) + PACK[suffix](content[1000:])  # as `cat` makes them
    path.write_bytes(packed)
    assert read_inputs(tmp_path)[0] == [text]
    for damaged in (packed[:-20], packed[:200] + bytes(200) + packed[400:], packed + b"rubbish"):
        path.write_bytes(damaged)
        assert "broken compression" in read_inputs(path)[0][-1]


def test_what_is_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    folder = _files(
        tmp_path / "data",
        *("a.txt", "b.tar", "c.zip", "d.tar", "e.csv", "f.png", ".env", "g.parquet.gz", "h.log"),
        *("ids.npy", ".git/config", "node_modules/x.js", "tests/t.py", "lib/i.py"),
    )
    (folder / ".gitignore").write_text("*.log\n/lib/\n")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    texts, source = read_inputs(folder, globs=Globs(exclude=("tests",)))
    assert texts == ["a.txt"]
    assert source.files_left_out == {
        ".csv (a table)": 1,
        ".gz (compressed, not text or JSON)": 1,
        ".npy (holds ids)": 1,
        ".png (not text)": 1,
        ".tar (an archive; --include '*.tar' reads it)": 2,
        ".zip (an archive; --include '*.zip' reads it)": 1,
        "broken link": 1,
        "by .gitignore": 1,
        "hidden": 2,
        "not a regular file": 1,
    }
    assert source.folders_left_out == {
        "by --exclude": 1,
        "by .gitignore": 1,
        "hidden": 1,
        "node_modules": 1,
    }
    num_met = sum(len(files) for _, _, files in os.walk(folder))
    inside = 4  # of the four folders
    assert source.num_files + sum(source.files_left_out.values()) == num_met - inside


def test_what_include_does_not_name_and_what_holds_no_records_is_counted(tmp_path: Path) -> None:
    folder = _files(tmp_path, "a.py", "b.c", "c.csv")
    texts, source = read_inputs(folder, globs=Globs(include=("*.py", "*.csv")))
    assert (texts, source.files_left_out) == (["a.py", "c.csv"], {"not in --include": 1})
    (folder / "chats.jsonl").write_text('{"messages": []}\n')
    source = read_inputs(folder, fields=Fields(messages="messages"))[1]
    assert source.files_left_out == {
        ".c (holds text)": 1,
        ".csv (a table)": 1,
        ".py (holds text)": 1,
    }
    with pytest.raises(ValueError, match=r"no file to read; left out: \.csv \(a table\)"):
        read_inputs(_files(tmp_path / "tables", "c.csv"))
    for bare in ("txt", ".txt"):
        with pytest.raises(ValueError, match=r"whole name: files that end so are '\*\.txt'"):
            read_inputs(folder, globs=Globs(include=(bare,)))


@pytest.mark.parametrize("suffix", [".rar", ".RAR", ".tar.lz4"])
@pytest.mark.parametrize("include", [(), ("*.*",)])
def test_an_archive_is_no_text_even_where_it_is_named(
    tmp_path: Path, suffix: str, include: tuple[str, ...]
) -> None:
    folder = _files(tmp_path, "a.txt", f"c{suffix}")
    globs = Globs(include=include)
    with pytest.raises(ValueError, match=rf"{suffix.lower()[-4:]} is not supported; unpack it"):
        read_inputs(folder / f"c{suffix}", globs=globs)
    texts, source = read_inputs(folder, globs=globs)
    left_out = {f"{suffix.lower()[-4:]} (not supported)": 1}
    assert (texts, source.files_left_out) == (["a.txt"], left_out)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("x.bz2", "Rename it after what it holds, such as x.jsonl.bz2 or x.txt.bz2"),
        ("x.py.gz", "Rename it after what it holds, such as x.py.jsonl.gz or x.py.txt.gz"),
        ("x.parquet.gz", "Decompress it"),
        ("x y.XLSX", "Convert it with `soffice --headless --convert-to csv '{path}'`"),
        ("x.xyz", "To read it as text add --include 'x.xyz', or give its folder"),
    ],
)
def test_advice_for_an_unknown_suffix_leads_to_what_the_file_holds(
    tmp_path: Path, name: str, advice: str
) -> None:
    path = _files(tmp_path, name) / name
    with pytest.raises(ValueError, match=r"unknown suffix '\.") as error:
        read_inputs(path)
    assert str(error.value).endswith(f". {advice.format(path=path)}")


def test_the_closing_table_and_the_manifest_tell_what_wasread_inputs(
    tmp_path: Path, run_cli: Cli, bpe_folder: Path, write_jsonl: Callable[..., Path]
) -> None:
    folder = _files(tmp_path / "data", "a.txt", "b.rar", "c.rar", ".git/config")
    write_jsonl(tmp_path / "more.jsonl", ["text"])
    code, out, error = run_cli(
        *("build", "--input", f"notes={folder}", tmp_path / "more.jsonl", "--val-frac", 0),
        *("--tokenizer", bpe_folder, "--out", tmp_path / "corpus", "--workers", 1),
    )
    assert code == 0, error
    line = "files      read 2 of 4 files: 2 .rar (not supported), 1 folder hidden"
    assert line in out.splitlines()
    first = open_corpus(tmp_path / "corpus").manifest.domains[0].sources[0]
    assert first.files_left_out == {".rar (not supported)": 2}
    code, out, error = run_cli(
        *("train-tokenizer", "--input", folder, "--vocab-size", 300, "--out", tmp_path / "t")
    )
    assert code == 0, error
    assert "files      read 1 of 3 files: 2 .rar (not supported), 1 folder hidden" in out


def test_a_source_tree_keeps_its_json_files_as_text(
    tmp_path: Path, run_cli: Cli, bpe_folder: Path
) -> None:
    folder = _files(tmp_path / "src", "main.py")
    (folder / "package.json").write_text('{"name": "package"}')
    command = ("build", "--input", folder, "--tokenizer", bpe_folder, "--val-frac", 0)
    flags = ("--out", tmp_path / "corpus", "--workers", 1)
    code, _, error = run_cli(*command, *flags)
    assert code == 2
    assert "package.json:1: missing key 'text': keys: name; name another with --text-" in error
    assert "; .json files hold" in error
    code, out, error = run_cli(*command, *flags, "--json-as-text")
    assert code == 0, error
    assert "files      read 2 of 2 files" in out


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    _files(tmp_path / "elsewhere", "far.txt", "deep/er.txt")
    folder = _files(tmp_path / "data", "near.txt", "sub/x.txt")
    (folder / "far").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "loop").symlink_to(folder)
    texts, source = read_inputs(folder)
    assert sorted(texts) == ["deep/er.txt", "far.txt", "near.txt", "sub/x.txt"]
    assert source.folders_left_out == {"link to a folder already read": 2}
    met = [m.path.relative_to(folder).as_posix() for m in walk_folder(folder, globs=Globs())]
    assert met == [*met]


def test_a_dataset_inside_a_folder_is_read_as_one(tmp_path: Path, texts: list[str]) -> None:
    """Its own state.json would be read as a document."""
    import datasets  # loads pandas

    saved = datasets.Dataset.from_dict({"text": texts[:5]})
    saved.save_to_disk(tmp_path / "data" / "saved")
    _files(tmp_path / "data", "a.txt")
    found, source = read_inputs(tmp_path / "data")
    assert sorted(found) == sorted([*texts[:5], "a.txt"])
    assert (source.num_files, source.files_left_out) == (2, {})
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "data" / "dict")
    with pytest.raises(ValueError, match="data/dict: holds the splits train; choose one"):
        read_inputs(tmp_path / "data")


@pytest.mark.parametrize("is_named", [False, True])
def test_a_name_that_is_not_utf8_is_read_and_escaped(
    tmp_path: Path, run_cli: Cli, bpe_folder: Path, is_named: bool
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = folder / os.fsdecode(b"d\xe9.jsonl")
    path.write_text('{"text": "good text"}\n{"text": 7}\n')
    given = path if is_named else folder
    code, out, error = run_cli(
        *("build", "--input", given, "--tokenizer", bpe_folder, "--out", tmp_path / "corpus"),
        *("--workers", 1, "--val-frac", 0, "--on-error", "skip"),
    )
    assert code == 0, error
    assert "caf\\xe9/d\\xe9.jsonl:2: not text" in out
    corpus = open_corpus(tmp_path / "corpus")
    assert "caf\\xe9" in corpus.manifest.domains[0].sources[0].path
    assert corpus.origin(0).path == str(path)
    assert "d\\xe9.jsonl@0" in str(corpus.origin(0))
    code, out, error = run_cli("inspect", tmp_path / "corpus")
    assert code == 0, error
    assert "d\\xe9.jsonl@0" in out


def test_a_benchmark_is_read_whole_or_refused(tmp_path: Path, run_cli: Cli) -> None:
    long = "one two three four five six seven eight nine ten"
    folder = tmp_path / "benchmark"
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps([{"question": long}, {"answer": "x"}]))
    (folder / "old.csv").write_text("a,b\n")
    found = read_benchmark(Against((str(folder),), ("question",), 13))
    assert found.words == [long.split()]
    assert (found.num_files, found.num_without_text) == (1, 1)
    assert found.files_left_out == {".csv (a table)": 1}
    (folder / "more.jsonl").write_text(json.dumps({"question": long}) + "\n{broken\n")
    with pytest.raises(ValueError, match=r"--against: .*more\.jsonl:2: broken JSON"):
        read_benchmark(Against((str(folder),), ("question",), 12))
