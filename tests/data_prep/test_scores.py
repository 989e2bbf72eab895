"""Scores beside a corpus: of the right tokens, and refused when damaged or foreign."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.ledger import SPLITS
from data_prep.manifest import Shard
from data_prep.scores import Scores
from data_prep.scores_writer import open_scores_writer
from data_prep.shards import Corpus, open_corpus
from data_prep.verify import verify
from tests.scores import made_up_top_k, write_scores, write_top_k


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


def rows_by_token(corpus: Corpus, *, k: int) -> dict[tuple[str, int, int], list[float]]:
    """What `write_top_k` keeps, ids and log-probabilities, by split, document and token."""
    index, rows = corpus.open_pack(64), {}
    for split in SPLITS:
        for i in range(index.num_samples(split)):
            made_up = np.concatenate(made_up_top_k(corpus, i, split, k=k, count=64), axis=1)
            at = 0
            for document, start, length in index.pieces(i, split).tolist():
                for t in range(1, length):  # a token's is that of the position before it
                    rows[split, document, start + t] = made_up[at + t - 1].tolist()
                at += length
    return rows


def test_the_likeliest_of_a_token_are_found_in_any_packing(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    scores, kept = write_top_k(corpus, k=3), rows_by_token(corpus, k=3)
    assert len(kept) > 100
    for length, first, count in ((64, 0, 64), (64, 33, 32), (256, 1, 256)):
        index, num_found = corpus.open_pack(length), 0
        for split in SPLITS:
            for i in range(index.num_samples(split)):
                found = scores.top_k(index, i, split, first=first, count=count)
                expected = np.full((length + 1, 7), np.nan)
                at = 0
                for document, start, tokens in index.pieces(i, split).tolist():
                    for t in range(1, tokens):
                        place = (split, document, start + t)
                        expected[at + t] = kept.get(place, [0.0] * 3 + [np.nan] * 4)
                    at += tokens
                expected = expected[first : first + count]
                has_value = ~np.isnan(expected[:, -1])
                assert np.array_equal(np.isnan(found.log_probs).all(axis=1), ~has_value)
                rows = np.concatenate([found.ids, found.log_probs], axis=1)[has_value]
                assert np.array_equal(rows, expected[has_value].astype(np.float32))
                num_found += len(rows)
        assert num_found > 60
    assert np.isnan(scores.document(0)[0])
    assert scores.document(0)[1] == 1.0


def test_likeliest_tokens_that_cannot_be_are_refused(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    with pytest.raises(ValueError, match=r"--top-k 0: expected a number from 1 to \d+, the ids of"):
        write_top_k(corpus, k=0)
    write_top_k(corpus, k=1)
    index = corpus.open_pack(64)
    path = corpus.folder / "scores-base" / f"{corpus.manifest.split_shards('train')[0].name}.topk"
    whole = path.read_bytes()
    for row, told in (
        (np.array([corpus.vocab_size], "<u2").tobytes() + whole[2:6], "an id that is not below"),
        (whole[:2] + np.array([1.0, -1.0], "<f2").tobytes(), "a log-probability above 0"),
        (whole[:2] + np.array([-1.0, np.nan], "<f2").tobytes(), "that is no number"),
    ):
        path.write_bytes(row * (len(whole) // len(row)))
        with pytest.raises(ValueError, match=f"sample 0 of train: damaged: .*{told}"):
            corpus.open_scores("base").top_k(index, 0, count=64)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"expected .* bytes, found"):
        corpus.open_scores("base")


def test_what_a_run_reads_of_scores_is_known_by_a_fingerprint(packed_corpus: Path) -> None:
    corpus = open_corpus(packed_corpus)
    score(corpus)
    alone = corpus.open_scores("base")
    assert "top_k" in (alone.folder / "scores.json").read_text()
    assert alone.num_kept == 0
    found = [write_top_k(corpus, k=k) for k in (1, 2)]
    assert [each.num_kept for each in found] == [1, 2]
    assert len({alone.fingerprint, *(each.fingerprint for each in found)}) == 3
    files = found[0].top_k_files(("train",))
    assert [file.name for _, file in files] == [
        f"{shard.name}.topk" for shard in corpus.manifest.split_shards("train")
    ]
    check = verify(packed_corpus, deep=True)[-1]
    assert (check.name, check.problem) == ("scores-base", None)
    assert check.detail == "nll and the 2 likeliest tokens by m"
    path = found[0].folder / files[0][1].name
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    problem = verify(packed_corpus, deep=True)[-1].problem
    assert f"{path.name}: damaged: expected sha256" in str(problem)
