"""Megatron's own reader and writer agree with ours, and pairs appear whole or not at all."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import shutil
import sys
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from data_prep import megatron
from data_prep.__main__ import main
from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.megatron import export_megatron
from data_prep.reading.fields import Fields
from data_prep.shards import Corpus, open_corpus

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def indexed_dataset() -> Iterator[ModuleType]:
    """Megatron's `indexed_dataset`, without the 1,900 modules that its package imports."""
    try:
        distribution = importlib.metadata.distribution("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs megatron-core")
    root = Path(str(distribution.locate_file("megatron")))
    before = dict(sys.modules)
    for name in ("megatron", "megatron.core", "megatron.core.datasets"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    utils = types.ModuleType("megatron.core.utils")
    utils.log_single_rank = lambda *_: None  # type: ignore[attr-defined]
    sys.modules["megatron.core.utils"] = utils
    try:
        yield importlib.import_module("megatron.core.datasets.indexed_dataset")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "megatron"]:
            del sys.modules[name]
        sys.modules.update({k: v for k, v in before.items() if k.split(".")[0] == "megatron"})


@pytest.fixture
def corpus(
    tmp_path: Path, texts: list[str], write_jsonl: Callable[..., Path], build_corpus: Build
) -> Corpus:
    """Two domains, both splits, several shards of each."""
    half = len(texts) // 2
    web = write_jsonl(tmp_path / "web.jsonl", texts[:half])
    law = write_jsonl(tmp_path / "law.jsonl", texts[half:])
    return open_corpus(build_corpus(f"web={web}", f"law={law}", val_frac=0.2, shard_mib=0.01))


def _documents(corpus: Corpus, split: Any) -> list[list[int]]:
    return [corpus.document(i, split).tolist() for i in range(corpus.num_documents(split))]


def _theirs(indexed_dataset: ModuleType, prefix: Path) -> list[list[int]]:
    dataset = indexed_dataset.IndexedDataset(str(prefix))
    bounds = dataset.document_indices.tolist()
    assert bounds == list(range(len(dataset) + 1))
    return [dataset[i].tolist() for i in range(len(dataset))]


def _import(prefix: Path, *, out: Path, tokenizer: Path, **changes: Any) -> Corpus:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    arguments = ["import-megatron", str(prefix), "--tokenizer", str(tokenizer)]
    assert main([*arguments, "--out", str(out), "--val-frac=0", "--workers=1", *flags]) == 0
    return open_corpus(out)


def test_megatron_reads_every_document_of_an_export(
    tmp_path: Path, corpus: Corpus, indexed_dataset: ModuleType
) -> None:
    exports = export_megatron(corpus.folder, prefix=tmp_path / "out" / "notes")
    assert [export.prefix.name for export in exports] == ["notes-train", "notes-val"]
    for export in exports:
        documents = _documents(corpus, export.split)
        assert documents == _theirs(indexed_dataset, export.prefix)
        assert export.num_documents == len(documents)
        assert export.num_tokens == sum(map(len, documents))
        sizes = [Path(f"{export.prefix}{s}").stat().st_size for s in (".bin", ".idx")]
        assert export.num_bytes == sum(sizes)


def test_pieces_of_an_export_leave_no_trace(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_megatron(corpus.folder, prefix=tmp_path / "a", split="train")
    monkeypatch.setattr(megatron, "_PIECE_BYTES", 64)
    monkeypatch.setattr(megatron, "_ROWS_AT_ONCE", 3)
    export_megatron(corpus.folder, prefix=tmp_path / "b", split="train")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_domain_alone_is_exported(
    tmp_path: Path, corpus: Corpus, indexed_dataset: ModuleType
) -> None:
    export_megatron(corpus.folder, prefix=tmp_path / "law", split="val", domains=["law"])
    numbers = corpus.domain_documents("val")["law"]
    assert numbers and len(numbers) < corpus.num_documents("val")
    expected = [corpus.document(i, "val").tolist() for i in numbers]
    assert _theirs(indexed_dataset, tmp_path / "law") == expected


def test_ids_beyond_16_bits_are_exported_as_int32(
    tmp_path: Path, indexed_dataset: ModuleType
) -> None:
    ids = [[70_000, 3, 65_536], [99_999]]
    tokenizer = _tokenizer_of(100_000, to=tmp_path / "tokenizer")
    source = tmp_path / "ids.jsonl"
    source.write_text("".join(json.dumps({"ids": document}) + "\n" for document in ids))
    corpus = _build_ids(source, out=tmp_path / "corpus", tokenizer=tokenizer)
    export_megatron(corpus.folder, prefix=tmp_path / "big", split="train")
    assert _theirs(indexed_dataset, tmp_path / "big") == ids
    assert indexed_dataset.IndexedDataset(str(tmp_path / "big")).index.dtype == np.int32
    back = _import(tmp_path / "big", out=tmp_path / "back", tokenizer=tokenizer)
    assert _documents(back, "train") == ids


def _tokenizer_of(num_words: int, *, to: Path) -> Path:
    from tokenizers import Tokenizer, models

    to.mkdir()
    vocabulary = {f"w{i}": i for i in range(num_words)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(to / "tokenizer.json"))
    return to


def _build_ids(source: Path, *, out: Path, tokenizer: Path, loss_mask: str | None = None) -> Corpus:
    options = BuildOptions(
        inputs=(source,),
        out=out,
        tokenizer=str(tokenizer),
        fields=Fields(ids="ids", loss_mask=loss_mask),
        val_frac=0.0,
        num_workers=1,
    )
    build(options)
    return open_corpus(out)


def test_export_and_import_give_the_same_documents(
    tmp_path: Path, corpus: Corpus, bpe_folder: Path
) -> None:
    export_megatron(corpus.folder, prefix=tmp_path / "a", split="train")
    back = _import(tmp_path / "a", out=tmp_path / "back", tokenizer=bpe_folder)
    assert _documents(back, "train") == _documents(corpus, "train")


@pytest.mark.parametrize("suffix", ["", ".idx", ".bin"])
def test_what_megatron_writes_is_imported(
    tmp_path: Path, bpe_folder: Path, indexed_dataset: ModuleType, suffix: str
) -> None:
    import torch

    prefix = tmp_path / "theirs_text_document"
    builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    documents = [[[5, 6, 7]], [[1], [2, 3]], [[399, 0]]]
    for sequences in documents:
        for ids in sequences:
            builder.add_item(torch.tensor(ids))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    path = Path(f"{prefix}{suffix}")
    back = _import(path, out=tmp_path / "back", tokenizer=bpe_folder)
    assert _documents(back, "train") == [[5, 6, 7], [1, 2, 3], [399, 0]]


def test_ids_of_another_tokenizer_are_refused(
    tmp_path: Path, corpus: Corpus, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    export_megatron(corpus.folder, prefix=tmp_path / "a", split="train")
    small = _tokenizer_of(10, to=tmp_path / "small")
    verb = ("import-megatron", tmp_path / "a", "--tokenizer", small, "--workers", 1)
    code, _, error = run_cli(*verb, "--out", tmp_path / "back")
    assert code == 2 and "a.idx:row 1: id outside the vocabulary" in error


def test_the_verb_says_what_was_written_and_what_was_left_out(
    tmp_path: Path, bpe_folder: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    source = tmp_path / "ids.jsonl"
    source.write_text('{"ids": [1, 2, 3], "mask": [0, 1, 1]}\n')
    _build_ids(source, out=tmp_path / "corpus", tokenizer=bpe_folder, loss_mask="mask")
    verb = ("export-megatron", tmp_path / "corpus", "--out", tmp_path / "a")
    code, out, _ = run_cli(*verb)
    assert code == 0
    assert f"{tmp_path / 'a-train'}.bin and .idx: train, 1 documents, 3 tokens" in out
    assert "only train has documents" in out and "loss masks are not exported" in out
    code, _, error = run_cli(*verb)
    assert code == 2 and "a-train.bin: already exists" in error
    assert run_cli(*verb, "--overwrite")[0] == 0


def test_an_export_appears_whole_or_not_at_all(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tree: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    export_megatron(corpus.folder, prefix=out / "a")
    before = tree(out)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(megatron, "_write_index", fail)
    for prefix in ("a", "b"):
        with pytest.raises(OSError, match="No space left"):
            export_megatron(corpus.folder, prefix=out / prefix, overwrite=True)
    assert tree(out) == before


def test_a_pair_without_its_index_is_never_left_half_replaced(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_megatron(corpus.folder, prefix=tmp_path / "a", split="train")
    order: list[str] = []
    replace = Path.replace

    def watch(source: Path, target: Path) -> Path:
        order.append(Path(target).name)
        assert not (tmp_path / "a.idx").exists()
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", watch)
    export_megatron(corpus.folder, prefix=tmp_path / "a", split="val", overwrite=True)
    assert order == ["a.bin", "a.idx"]


def test_exports_that_cannot_be_meant_are_refused(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=match):
            export_megatron(corpus.folder, **{"prefix": tmp_path / "a", **changes})

    refused("give it without .idx", prefix=tmp_path / "a.idx")
    refused("no such domain; the corpus has web, law", domains=["lwa"])
    refused("is inside the corpus", prefix=corpus.folder / "a")
    (tmp_path / "a-val.bin").write_text("a film, say")
    refused("is not a Megatron file", overwrite=True)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=1000))
    refused("needs 0.00 GiB, has 0.00 GiB free", prefix=tmp_path / "b")
    assert not list(tmp_path.glob("*b-*"))


def test_two_exports_to_one_name_cannot_run_at_once(tmp_path: Path, corpus: Corpus) -> None:
    with (
        megatron._aside(tmp_path / "a.bin"),
        pytest.raises(ValueError, match="another process is writing it"),
    ):
        export_megatron(corpus.folder, prefix=tmp_path / "a", split="train")
    assert not (tmp_path / "a.bin").exists()
    export_megatron(corpus.folder, prefix=tmp_path / "a", split="train")


def test_a_damaged_corpus_is_not_exported(tmp_path: Path, corpus: Corpus) -> None:
    shard = corpus.manifest.split_shards("train")[0]
    for record, value, match in (
        (shard.tokens, np.uint16(65_000), "damaged: id 65000, expected ids below 400"),
        (shard.docs, np.int64(1), "damaged: expected bounds from 0"),
    ):
        path = corpus.folder / record.name
        whole = path.read_bytes()
        path.write_bytes(value.tobytes() + whole[value.nbytes :])
        with pytest.raises(ValueError, match=match):
            export_megatron(corpus.folder, prefix=tmp_path / "a", overwrite=True)
        path.write_bytes(whole)
    assert not list(tmp_path.glob("*a-*"))
