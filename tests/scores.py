"""Scores that a test chose, beside a corpus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_prep.durable import staged_folder, write_durable
from data_prep.ledger import SPLITS, Split
from data_prep.manifest import Shard
from data_prep.record import record_text
from data_prep.scores import SCORES_NAME, Measure, Scores, ScoresManifest
from data_prep.scores_writer import describe_files, make_files, open_scores_writer
from data_prep.shards import Corpus, TopK


def write_scores(
    corpus: Corpus,
    score: Callable[[Shard], np.ndarray],
    *,
    name: str,
    measure: Measure = "shannon",
    model: str = "m",
    seq_len: int,
) -> Scores:
    """Write a score for every token of every shard.

    Args:
        score: gives the scores of a shard, float `[tokens]`, in nats, NaN for none.
    """
    with staged_folder(corpus.folder / f"scores-{name}") as staging:
        files = tuple(
            write_durable(staging / f"{shard.name}.f16", score(shard).astype(np.float16).data)
            for split in SPLITS
            for shard in corpus.manifest.split_shards(split)
        )
        manifest = ScoresManifest(
            schema_version=1,
            name=name,
            measure=measure,
            model=model,
            seq_len=seq_len,
            corpus_fingerprint=corpus.fingerprint,
            files=files,
        )
        write_durable(staging / SCORES_NAME, record_text(manifest))
    return Scores(corpus, name=name)


def write_top_k(corpus: Corpus, *, k: int, seq_len: int = 64, name: str = "base") -> Scores:
    """Write scores of 1, and the likeliest tokens that `made_up_top_k` says, over others there."""
    index = corpus.open_pack(seq_len)
    with open_scores_writer(
        corpus, name=name, measure="nll", model="m", seq_len=seq_len, overwrite=True, top_k=k
    ) as writer:
        make_files(corpus, writer.staging, top_k=k)
        writer.begin()
        for split in SPLITS:
            for i in range(index.num_samples(split)):
                top_k = made_up_top_k(corpus, i, split, k=k, count=seq_len)
                writer.put_sample(index, i, split, np.ones(seq_len), top_k)
        writer.files = describe_files(corpus, writer.staging, top_k=k)
    return corpus.open_scores(name)


def made_up_top_k(corpus: Corpus, i: int, split: Split, *, k: int, count: int) -> TopK:
    """Of the predictions at each position of sample `i`: no two samples have the same."""
    places = np.arange(count)[:, None]
    first = 31 * i + 7 * places + 3 * (split == "val")
    ids = ((first + np.arange(k)) % corpus.vocab_size).astype(np.int32)
    return TopK(ids, -((i % 8 + places + np.arange(k + 1)) / 8.0).astype(np.float16))
