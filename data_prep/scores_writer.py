"""Writes token scores by sample of a pack; they appear when they are complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.names import checked_name
from data_prep.durable import (
    clear_staged,
    describe_file,
    refuse_existing,
    staged_folder,
    write_durable,
)
from data_prep.ledger import Split
from data_prep.packing.index import PackIndex
from data_prep.record import FileRecord, record_text
from data_prep.scores import (
    SCORE_DTYPE,
    SCORE_SUFFIX,
    SCORES_NAME,
    SCORES_PREFIX,
    TOP_K_SUFFIX,
    Measure,
    ScoresManifest,
    score_columns,
)
from data_prep.top_k import TopK, TopKManifest, blank_rows

if TYPE_CHECKING:
    from data_prep.shards import Corpus

_BLOCK_BYTES = 1 << 23


class ScoresWriter:
    """Writes scores by sample of a pack; after a restart, committed work is not repeated."""

    def __init__(self, corpus: Corpus, staging: Path, *, plan: dict[str, Any]) -> None:
        """Resume from `staging` if it was made by the same plan."""
        self._corpus, self.staging = corpus, staging
        self._plan_path = staging.parent / "plan.json"
        self._position_path = staging.parent / "position.json"
        self._plan = json.dumps(plan, sort_keys=True).encode()
        self._top_k: int | None = plan.get("top_k")
        self.is_new = not self._plan_path.is_file() or self._plan_path.read_bytes() != self._plan
        """Whether its files are still to be made, by `make_files`."""
        if self.is_new:
            clear_staged(staging)
        self._maps: dict[str, np.memmap] = {}
        self.files: list[FileRecord] = []
        """What the finished files are, in their order, as `describe_files` says."""

    def begin(self) -> None:
        """Open the files, which exist now.

        Raises:
            ValueError: when one is not there: a rank has made it elsewhere.
        """
        for name, dtype, num_tokens in _files(self._corpus, self._top_k):
            path = self.staging / name
            if not path.is_file() or path.stat().st_size != num_tokens * dtype.itemsize:
                raise ValueError(
                    f"{path}: another process has made it, and it is not there: all of them must "
                    "see the folder of the corpus, and may write there"
                )
            if num_tokens:
                self._maps[name] = np.memmap(path, dtype=dtype, mode="r+")
        write_durable(self._plan_path, self._plan)

    @property
    def num_done(self) -> int:
        """Samples committed so far, of train and then of val."""
        if not self._position_path.is_file():
            return 0
        return int(json.loads(self._position_path.read_bytes())["num_done"])

    def put_sample(
        self, index: PackIndex, i: int, split: Split, values: np.ndarray, top_k: TopK | None = None
    ) -> None:
        """Store the scores of a sample's predictions.

        Args:
            values: `[S]`, in nats; position p scores the token at p + 1. NaN for no score.
            top_k: of the same positions, where they are kept.
        """
        what = f"sample {i} of {split}"
        columns = {SCORE_SUFFIX: _narrowed(values, what=what)}
        if top_k is not None:
            columns[TOP_K_SUFFIX] = self._as_rows(top_k, what=what)
        filled = 0
        for document, start, length in index.pieces(i, split).tolist():
            shard, first, _ = self._corpus.span(document, split)
            begin = first + start
            for suffix, column in columns.items():
                part = column[filled : filled + length - 1]
                self._maps[f"{shard.name}{suffix}"][begin + 1 : begin + length] = part
            filled += length

    def _as_rows(self, top_k: TopK, *, what: str) -> np.ndarray:
        if mistake := top_k.find_mistake(vocab_size=self._corpus.vocab_size):
            raise ValueError(f"{what}: {mistake}")
        dtype = score_columns(self._corpus, top_k=self._top_k)[TOP_K_SUFFIX]
        rows = np.empty(len(top_k.ids), dtype=dtype)
        rows["ids"], rows["log_probs"] = top_k
        return rows

    def commit(self, num_done: int) -> None:
        """Make all stored scores durable, and then the count of finished samples."""
        for mapped in self._maps.values():
            mapped.flush()
        content = json.dumps({"num_done": num_done}).encode()
        write_durable(self._position_path, content)


@contextmanager
def open_scores_writer(
    corpus: Corpus,
    *,
    name: str,
    measure: Measure,
    model: str,
    seq_len: int,
    overwrite: bool,
    top_k: int | None = None,
) -> Iterator[ScoresWriter]:
    """A writer whose scores appear when the block succeeds; otherwise the next run resumes.

    Args:
        top_k: how many likeliest tokens of each position `put_sample` is given; None for scores
            alone.
    """
    checked_name(name, what="--name ")
    if top_k is not None and not 1 <= top_k <= corpus.vocab_size:
        raise ValueError(
            f"--top-k {top_k}: expected a number from 1 to {corpus.vocab_size}, the ids of "
            f"{corpus.folder}"
        )
    out = corpus.folder / f"{SCORES_PREFIX}{name}"
    refuse_existing(out, marker=SCORES_NAME, overwrite=overwrite)
    facts: dict[str, Any] = {
        "name": name,
        "measure": measure,
        "model": model,
        "seq_len": seq_len,
        "corpus_fingerprint": corpus.fingerprint,
    }
    plan = facts if top_k is None else facts | {"top_k": top_k}
    with staged_folder(out, keeps_unfinished=True) as staging:
        writer = ScoresWriter(corpus, staging, plan=plan)
        yield writer
        num_shards = len(corpus.manifest.shards)
        files, others = tuple(writer.files[:num_shards]), tuple(writer.files[num_shards:])
        kept = None if top_k is None else TopKManifest(k=top_k, files=others)
        manifest = ScoresManifest(schema_version=1, files=files, top_k=kept, **facts)
        write_durable(staging / SCORES_NAME, record_text(manifest))


def make_files(
    corpus: Corpus,
    staging: Path,
    *,
    top_k: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Make a rank's share of the files, in which no token has a value yet, durably."""
    for name, dtype, num_tokens in _files(corpus, top_k)[rank::world_size]:
        _fill(staging / name, num_tokens=num_tokens, dtype=dtype)


def describe_files(
    corpus: Corpus,
    staging: Path,
    *,
    top_k: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> list[FileRecord]:
    """Sizes and checksums of a rank's share of the files."""
    files = _files(corpus, top_k)[rank::world_size]
    return [describe_file(staging / name) for name, _, _ in files]


def _files(corpus: Corpus, top_k: int | None) -> list[tuple[str, np.dtype, int]]:
    """Name, type and number of tokens of each: those of the scores, then the others."""
    return [
        (f"{shard.name}{suffix}", dtype, shard.num_tokens)
        for suffix, dtype in score_columns(corpus, top_k=top_k).items()
        for shard in corpus.manifest.shards
    ]


def _narrowed(scores: np.ndarray, *, what: str) -> np.ndarray:
    """As float16, whose maximum is 65,504: no entropy of any vocabulary exceeds it."""
    if (scores < 0).any() or (scores > np.finfo(SCORE_DTYPE).max).any():
        raise ValueError(f"{what}: expected scores of 0 or more, and below 65,504")
    return scores.astype(SCORE_DTYPE)


def _fill(path: Path, *, num_tokens: int, dtype: np.dtype) -> None:
    block_tokens = max(1, _BLOCK_BYTES // dtype.itemsize)
    block = blank_rows(min(num_tokens, block_tokens), dtype)
    with path.open("wb") as file:
        for start in range(0, num_tokens, block_tokens):
            file.write(block[: num_tokens - start].data)
        file.flush()
        os.fsync(file.fileno())
