"""What training reads: samples with positions, boundaries and padding."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.packing.pack import pack
from data_prep.shards import open_corpus


@pytest.mark.parametrize("seq_len", [64, 256])
@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_give_every_document_back(packed_corpus: Path, seq_len: int, split: str) -> None:
    corpus = open_corpus(packed_corpus)
    index = corpus.open_pack(seq_len)
    rebuilt = [np.zeros(len(corpus.document(d, split))) for d in range(corpus.num_documents(split))]
    for i in range(index.num_samples(split)):
        sample, at = index.sample(i, split), 0
        for document, start, length in index.pieces(i, split).tolist():
            rebuilt[document][start : start + length] = sample.ids[at : at + length]
            at += length
    for document, ids in enumerate(rebuilt):
        assert np.array_equal(ids, corpus.document(document, split))


def test_positions_restart_at_every_piece_and_at_the_padding(packed_corpus: Path) -> None:
    index = open_corpus(packed_corpus).open_pack(64)
    for i in range(index.num_samples("train")):
        sample = index.sample(i, "train")
        lengths = [length for _, _, length in index.pieces(i, "train").tolist()]
        lengths.append(64 - sum(lengths))
        expected = np.concatenate([np.arange(length) for length in lengths])
        assert np.array_equal(sample.position_ids, expected)
        assert sample.num_tokens == sum(lengths[:-1])


def test_counts_agree_with_the_samples(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    for seq_len in (64, 256):
        index = corpus.open_pack(seq_len)
        for split in ("train", "val"):
            samples = [index.sample(i, split) for i in range(index.num_samples(split))]
            assert sum(s.num_tokens for s in samples) == index.num_tokens(split)
            assert index.num_tokens(split) == corpus.num_tokens(split)
            # A target is any real token that is not the first of its piece.
            targets = sum(int((s.position_ids[: s.num_tokens] > 0).sum()) for s in samples)
            assert targets == index.num_targets(split)


def test_types_and_padding_are_what_training_expects(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    index = corpus.open_pack(256)
    sample = index.sample(index.num_samples("train") - 1, "train")
    assert sample.ids.dtype == sample.position_ids.dtype == np.int64
    assert sample.ids.shape == sample.position_ids.shape == (256,)
    assert sample.num_tokens < 256
    assert set(sample.ids[sample.num_tokens :].tolist()) == {corpus.manifest.special_ids.pad}


def test_documents_are_read_only_views(packed_corpus: Path) -> None:
    document = open_corpus(packed_corpus).document(0, split="train")
    assert document.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        document[0] = 1


def test_pickles_carry_the_path_and_nothing_else(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    index = corpus.open_pack(64)
    index.sample(0, "train")
    content = pickle.dumps(index)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content).sample(3).ids, index.sample(3).ids)


def test_numbers_out_of_range_are_refused(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    index = corpus.open_pack(64)
    for bad in (-1, index.num_samples("train")):
        with pytest.raises(IndexError, match="there are"):
            index.sample(bad)
    for bad in (-1, corpus.num_documents("val")):
        with pytest.raises(IndexError, match="there are"):
            corpus.document(bad, "val")
    with pytest.raises(ValueError, match="train and val"):
        corpus.num_documents("test")


def test_a_missing_pack_names_the_command_that_makes_it(packed_corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"python -m data_prep pack .* --seq-len 128"):
        open_corpus(packed_corpus).open_pack(128)


def test_a_pack_of_another_corpus_is_refused(
    packed_corpus: Path, build_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    other = build_corpus(tmp_path / "docs.jsonl", out=tmp_path / "other", add_eos=False)
    (packed_corpus / "pack-64").rename(other / "pack-64")
    with pytest.raises(ValueError, match="made for another corpus: expected fingerprint"):
        open_corpus(other).open_pack(64)


def test_packing_again_keeps_what_fits_and_refuses_what_does_not(packed_corpus: Path) -> None:
    before = (packed_corpus / "pack-64" / "pack.json").stat().st_mtime_ns
    pack(packed_corpus, seq_len=64)
    assert (packed_corpus / "pack-64" / "pack.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="policy best_fit, asked for concat; add --overwrite"):
        pack(packed_corpus, seq_len=64, policy="concat")
    assert pack(packed_corpus, seq_len=64, policy="concat", overwrite=True).policy == "concat"


def test_a_pack_fingerprint_changes_with_the_packing(packed_corpus: Path) -> None:
    first = open_corpus(packed_corpus).open_pack(64).fingerprint
    second = pack(packed_corpus, seq_len=64, policy="concat", overwrite=True).fingerprint
    assert first != second
