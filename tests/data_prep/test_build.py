"""A build: same bytes for any number of workers, a ledger that adds up, all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import encode, write_corpus
from data_prep.packing.pack import pack
from data_prep.reading import lines
from data_prep.reading.fields import Fields
from data_prep.shards import open_corpus
from data_prep.verify import verify
from tests.data_prep.read_back import decoded


@pytest.mark.parametrize("num_workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(
    source: Path,
    build_corpus: Callable[..., Path],
    tree: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
    num_workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("data_prep.encode.TASK_PARTS", 7)
    changes = {"val_frac": 0.3, "shard_mib": 0.01}
    one = build_corpus(source, out=tmp_path / "one", num_workers=1, **changes)
    many = build_corpus(source, out=tmp_path / "many", num_workers=num_workers, **changes)
    assert tree(one) == tree(many)
    assert len(open_corpus(one).manifest.shards) > 3


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_training_a_tokenizer_twice_gives_the_same_corpus(
    source: Path,
    build_corpus: Callable[..., Path],
    tree: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
    algorithm: str,
) -> None:
    changes = {"tokenizer": None, "train_tokenizer": algorithm, "train_vocab_size": 350}
    one = build_corpus(source, out=tmp_path / "one", **changes)
    two = build_corpus(source, out=tmp_path / "two", **changes)
    assert tree(one) == tree(two)


def test_any_text_comes_back_exactly_with_eos_behind(
    tmp_path: Path,
    tricky: tuple[str, ...],
    write_jsonl: Callable[..., Path],
    build_corpus: Callable[..., Path],
) -> None:
    folder = build_corpus(write_jsonl(tmp_path / "docs.jsonl", tricky))
    assert decoded(folder) == [text + "<eos>" for text in tricky]


def test_no_eos_leaves_the_text_alone(source: Path, build_corpus: Callable[..., Path]) -> None:
    folder = build_corpus(source, add_eos=False)
    assert not any(text.endswith("<eos>") for text in decoded(folder))
    assert open_corpus(folder).manifest.ledger.num_tokens_special == 0


def test_the_ledger_accounts_for_every_document_and_token(
    tmp_path: Path, build_corpus: Callable[..., Path]
) -> None:
    path = tmp_path / "docs.jsonl"
    lines = ['{"ids": [1, 2, 3]}', '{"ids": []}', '{"ids": [1, 99999]}', "broken", '{"ids": [4]}']
    path.write_text("\n".join(lines) + "\n")
    ledger = open_corpus(
        build_corpus(path, fields=Fields(ids="ids"), on_error="skip")
    ).manifest.ledger
    assert (ledger.num_documents_in, ledger.num_documents_kept) == (5, 2)
    assert (ledger.num_documents_empty, ledger.num_documents_bad) == (1, 2)
    assert (ledger.num_tokens_in, ledger.num_tokens_left_out, ledger.num_tokens_kept) == (6, 2, 4)
    assert ledger.bad_by_reason == {"broken JSON": 1, "id outside the vocabulary": 1}
    assert "docs.jsonl:3" in ledger.first_bad[0]
    assert "docs.jsonl:4" in ledger.first_bad[1]


def test_the_ledger_agrees_with_the_shards(source: Path, build_corpus: Callable[..., Path]) -> None:
    corpus = open_corpus(build_corpus(source, val_frac=0.3))
    ledger = corpus.manifest.ledger
    for split in ("train", "val"):
        lengths = [len(corpus.document(i, split)) for i in range(corpus.num_documents(split))]
        assert ledger.by_split[split].num_tokens == sum(lengths) == corpus.num_tokens(split)
        assert ledger.by_split[split].num_documents == len(lengths)
    assert ledger.num_tokens_special == ledger.num_documents_kept == 120


def test_a_literal_end_token_in_a_text_ends_nothing(
    tmp_path: Path, write_jsonl: Callable[..., Path], build_corpus: Callable[..., Path]
) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", ["before <eos> after", "<eos><eos>"])
    corpus = open_corpus(build_corpus(path))
    eos = corpus.manifest.special_ids.eos
    for i in range(2):
        assert np.flatnonzero(corpus.document(i) == eos).tolist() == [len(corpus.document(i)) - 1]


def test_a_bad_document_is_named_and_the_build_goes_on_without_it(
    tmp_path: Path,
    source: Path,
    build_corpus: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = build_corpus(source, out=tmp_path / "whole")
    monkeypatch.setattr(write_corpus, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(encode, "TASK_BYTES", 2000)
    monkeypatch.setattr(lines, "PART_BYTES", 2000)
    with source.open("a") as file:
        file.write("\n" * 20_000 + "{broken\n")  # tasks before it are done by then
    with pytest.raises(ValueError, match=r"docs\.jsonl:20121: broken JSON.*--on-error skip"):
        build_corpus(source)
    assert not (tmp_path / "corpus").exists()
    capsys.readouterr()
    folder = build_corpus(source, on_error="skip")
    assert "resuming after" in capsys.readouterr().err
    assert open_corpus(folder).fingerprint == open_corpus(whole).fingerprint
    ledger = open_corpus(folder).manifest.ledger
    assert (ledger.num_documents_empty, ledger.num_documents_bad) == (20_000, 1)


def test_empty_documents_are_counted_and_never_an_error(
    tmp_path: Path, build_corpus: Callable[..., Path]
) -> None:
    path = tmp_path / "docs.jsonl"
    good = '{"text": "good"}\n'
    path.write_text(good + "\n" + '{"text": ""}\n' + '{"text": " \\n"}\n' + good)
    ledger = open_corpus(build_corpus(path)).manifest.ledger
    assert (ledger.num_documents_kept, ledger.num_documents_empty) == (2, 3)


@pytest.mark.parametrize("value", ["[1, 99999]", "[-1]", "[1, 2, 70000]"])
def test_ids_outside_the_vocabulary_are_named(
    tmp_path: Path, build_corpus: Callable[..., Path], value: str
) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text(f'{{"ids": [1]}}\n{{"ids": {value}}}\n')
    with pytest.raises(ValueError, match=r"ids\.jsonl:2: id outside the vocabulary: -?\d+ at"):
        build_corpus(path, fields=Fields(ids="ids"))


def test_an_older_corpus_stays_unless_told_otherwise(
    source: Path, build_corpus: Callable[..., Path], tree: Callable[[Path], dict[str, bytes]]
) -> None:
    folder = build_corpus(source)
    before = tree(folder)
    with pytest.raises(ValueError, match="already exists; choose another name or add --overwrite"):
        build_corpus(source)
    assert tree(folder) == before
    build_corpus(source, add_eos=False, overwrite=True)
    assert tree(folder) != before


def test_a_name_of_the_corpus_that_is_not_utf8_is_refused(
    tmp_path: Path, source: Path, build_corpus: Callable[..., Path]
) -> None:
    out = tmp_path / os.fsdecode(b"c\xe9")
    with pytest.raises(ValueError, match=r"--out .*/c\\xe9: its name must be valid UTF-8"):
        build_corpus(source, out=out)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_overwrite_never_deletes_a_folder_that_is_not_ours(
    tmp_path: Path, source: Path, build_corpus: Callable[..., Path]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"has no manifest\.json; choose another folder"):
        build_corpus(source, out=tmp_path / "home", overwrite=True)
    folder = build_corpus(source)
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="overlaps with --input"):
        build_corpus(folder / "notes.txt", overwrite=True)


def test_two_builds_of_one_folder_do_not_mix(
    tmp_path: Path, source: Path, build_corpus: Callable[..., Path]
) -> None:
    from data_prep.durable import staged_folder

    with (
        pytest.raises(ValueError, match="another process is writing it"),
        staged_folder(tmp_path / "corpus"),
    ):
        build_corpus(source)


@pytest.mark.parametrize("content", ["", "[]", "half"])
def test_an_unfinished_build_whose_plan_is_damaged_is_not_begun_anew_unasked(
    tmp_path: Path, source: Path, build_corpus: Callable[..., Path], content: str
) -> None:
    """It may be hours of work."""
    path = tmp_path / ".corpus.building" / "plan.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}: damaged: .*start over with --restart"):
        build_corpus(source)
    assert path.read_text() == content
    assert build_corpus(source, restart=True).is_dir()


def test_a_tokenizer_that_cannot_be_trained_leaves_nothing_behind(
    tmp_path: Path, source: Path, build_corpus: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match="--vocab-size 3: bpe needs at least 257"):
        build_corpus(source, tokenizer=None, train_tokenizer="bpe", train_vocab_size=3)
    assert [path.name for path in tmp_path.iterdir()] == ["docs.jsonl"]


def test_a_tokenizer_with_more_ids_than_uint16_gets_uint32(
    tmp_path: Path, build_corpus: Callable[..., Path]
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {f"w{n}": n for n in range(70_000)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "docs.txt").write_text("w1 w69999 w65536")
    corpus = open_corpus(
        build_corpus(tmp_path / "docs.txt", tokenizer=f"{tmp_path}/tokenizer.json")
    )
    assert corpus.document(0).tolist() == [1, 69999, 65536]
    assert corpus.document(0).dtype == np.uint32


def test_nothing_left_to_train_on_is_an_error(
    tmp_path: Path, build_corpus: Callable[..., Path]
) -> None:
    (tmp_path / "docs.txt").write_text("  \n")
    with pytest.raises(ValueError, match="no documents left to train on: 1 read, 1 empty"):
        build_corpus(tmp_path / "docs.txt")


def test_what_helps_is_said_where_all_documents_are_held_out(
    tmp_path: Path, write_jsonl: Callable[..., Path], build_corpus: Callable[..., Path]
) -> None:
    nearly_all = 1 - 2**-40
    one = write_jsonl(tmp_path / "one.jsonl", ["one document"])
    divided = "1 held out; 1 document cannot be divided: a text file is one document; cut it into "
    with pytest.raises(ValueError, match=f"{divided}several files, .*; --val-frac 0 trains on it$"):
        build_corpus(one, val_frac=nearly_all)
    ids = tmp_path / "ids.jsonl"
    ids.write_text('{"ids": [1, 2]}\n')
    with pytest.raises(ValueError, match="1 held out; 1 document cannot be divided; give several"):
        build_corpus(ids, val_frac=nearly_all, fields=Fields(ids="ids"))
    three = write_jsonl(tmp_path / "three.jsonl", ["a", "b", "c"])
    with pytest.raises(ValueError, match=f"3 held out by --val-frac {nearly_all}; lower it$"):
        build_corpus(three, val_frac=nearly_all)


def test_an_empty_val_split_packs_and_verifies(
    tmp_path: Path, build_corpus: Callable[..., Path]
) -> None:
    (tmp_path / "docs.txt").write_text("one document")
    folder = build_corpus(tmp_path / "docs.txt")
    index = pack(folder, seq_len=8)
    assert (index.num_samples("val"), index.num_tokens("val")) == (0, 0)
    assert all(check.problem is None for check in verify(folder, deep=True))


def test_the_manifest_is_plain_json_without_time_or_machine(
    source: Path, build_corpus: Callable[..., Path]
) -> None:
    manifest = json.loads((build_corpus(source) / "manifest.json").read_text())
    assert sorted(manifest) == [
        "domains",
        "inputs",
        "schema_version",
        "sha256_of_the_rest",
        "shards",
        "special_ids",
        "split",
        "token_dtype",
        "tokenizer",
        "vocab_size",
    ]
