"""Scores beside a corpus: of the right tokens, and refused when damaged or foreign."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.manifest import Shard
from data_prep.scores import Scores, open_scores_writer
from data_prep.shards import Corpus, open_corpus
from tests.scores import write_scores


def numbered(shard: Shard) -> np.ndarray:
    """0, 1, 2, ... over the tokens of a shard; float16 holds them up to 2,048."""
    return np.arange(shard.num_tokens) % 2048


def score(corpus: Corpus, name: str = "base") -> Scores:
    return write_scores(corpus, numbered, name=name, seq_len=64)


def test_documents_and_samples_get_the_scores_of_their_tokens(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    scores = score(corpus)
    for split in ("train", "val"):
        assert len(corpus.manifest.split_shards(split)) > (split == "train")
        for i in range(corpus.num_documents(split)):
            shard, start, end = corpus.span(i, split)
            assert shard.split == split
            assert scores.document(i, split).tolist() == [t % 2048 for t in range(start, end)]
        index = corpus.open_pack(64)
        for i in range(index.num_samples(split)):
            sample, found, at = index.sample(i, split), scores.sample(index, i, split), 0
            for document, start, length in index.pieces(i, split).tolist():
                expected = scores.document(document, split)[start : start + length]
                assert np.isnan(found[at])
                assert np.array_equal(found[at + 1 : at + length], expected[1:])
                at += length
            assert np.isnan(found[sample.num_tokens :]).all()


def test_scores_that_are_not_there_name_those_that_are(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    with pytest.raises(ValueError, match="no scores 'base'; there are: none"):
        corpus.open_scores("base")
    score(corpus, "one")
    score(corpus, "two")
    with pytest.raises(ValueError, match="no scores 'base'; there are: one, two"):
        corpus.open_scores("base")


def test_scores_of_another_corpus_or_a_truncated_file_are_refused(
    packed_corpus: Path, build_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    corpus = open_corpus(packed_corpus)
    folder = score(corpus).folder
    other = open_corpus(
        build_corpus(tmp_path / "docs.jsonl", out=tmp_path / "other", add_eos=False)
    )
    (other.folder / "scores-base").symlink_to(folder)
    with pytest.raises(ValueError, match="made for another corpus: expected fingerprint"):
        other.open_scores("base")
    path = folder / f"{corpus.manifest.shards[0].name}.f16"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"expected .* bytes, found"):
        corpus.open_scores("base")


@pytest.mark.parametrize("value", [-1.0, np.inf, 1e6])
def test_what_is_no_entropy_is_refused_on_either_side(packed_corpus: Path, value: float) -> None:
    corpus = open_corpus(packed_corpus)
    index = corpus.open_pack(64)
    with (
        pytest.raises(ValueError, match="expected scores of 0 or more"),
        open_scores_writer(
            corpus, name="base", measure="nll", model="m", seq_len=64, overwrite=False
        ) as writer,
    ):
        writer.put_sample(index, 0, "train", np.full(64, value, np.float32))
    assert not corpus.score_names()
    folder = score(corpus).folder
    path = folder / f"{corpus.manifest.shards[0].name}.f16"
    stored = np.full(path.stat().st_size // 2, -1.0 if value < 0 else np.inf, dtype="<f2")
    path.write_bytes(stored.tobytes())
    with pytest.raises(ValueError, match="document 0 of train: damaged: a score below 0 or inf"):
        corpus.open_scores("base").document(0)
