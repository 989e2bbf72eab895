"""Scores that a test chose, beside a corpus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_prep.durable import staged_folder, write_durable
from data_prep.ledger import SPLITS
from data_prep.manifest import Shard
from data_prep.record import record_text
from data_prep.scores import SCORES_NAME, Measure, Scores, ScoresManifest
from data_prep.shards import Corpus


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
