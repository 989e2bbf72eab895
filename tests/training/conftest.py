"""Fixtures of several files here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import open_corpus
from tests.scores import write_scores


@pytest.fixture
def corpus_copy(small_corpus: Path, tmp_path: Path) -> Path:
    """One that a test may break."""
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


@pytest.fixture
def scored_copy(corpus_copy: Path) -> Path:
    """The same with scores beside it."""
    from tests.training.short_runs import SEQUENCE_TOKENS  # loads the engine, which few files need

    write_scores(
        open_corpus(corpus_copy),
        lambda shard: np.ones(shard.num_tokens),
        name="reference",
        measure="shannon",
        model="a-model",
        seq_len=SEQUENCE_TOKENS,
    )
    return corpus_copy
