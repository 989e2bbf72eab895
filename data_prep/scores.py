"""Token scores next to a corpus: an entropy per token of the shards, and its likeliest values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from common.commands import command
from common.names import NAME_PATTERN
from data_prep.ledger import Split
from data_prep.mapped import checked_path, map_array
from data_prep.packing.index import PackIndex
from data_prep.record import FileRecord, Record, Sha256, load_record
from data_prep.top_k import TopK, TopKManifest, blank_rows, row_dtype

if TYPE_CHECKING:
    from data_prep.shards import Corpus

SCORES_NAME = "scores.json"
SCORES_PREFIX = "scores-"
SCORE_SUFFIX, TOP_K_SUFFIX = ".f16", ".topk"
SCORE_DTYPE = np.dtype("<f2")
Measure = Literal["shannon", "nll"]


class ScoresManifest(Record):
    """Which model scored which corpus, and the files: one per shard, in the shards' order."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    measure: Measure
    """shannon: entropy of the prediction of the token; nll: its own cross-entropy. In nats."""
    model: str
    seq_len: Annotated[int, Field(ge=1)]
    """Longest context that a token was scored with."""
    corpus_fingerprint: Sha256
    files: tuple[FileRecord, ...]
    top_k: TopKManifest | None = None
    """None where only scores were kept."""

    @property
    def all_files(self) -> tuple[FileRecord, ...]:
        """Those of the likeliest tokens, too."""
        return self.files + (self.top_k.files if self.top_k else ())


class Scores:
    """Scores by document or sample; NaN for a token without one, such as a document's first."""

    def __init__(self, corpus: Corpus, *, name: str) -> None:
        self.folder = corpus.folder / f"{SCORES_PREFIX}{name}"
        if not (self.folder / SCORES_NAME).is_file():
            names = ", ".join(score_names(corpus.folder)) or "none"
            raise ValueError(f"{corpus.folder}: no scores {name!r}; there are: {names}")
        made_by = f"`{command('data_prep score')}`"
        self.manifest = load_record(ScoresManifest, self.folder / SCORES_NAME, made_by=made_by)
        if self.manifest.corpus_fingerprint != corpus.fingerprint:
            raise ValueError(
                f"{self.folder}: made for another corpus: expected fingerprint "
                f"{corpus.fingerprint[:16]}, found {self.manifest.corpus_fingerprint[:16]}"
            )
        self._columns = score_columns(corpus, top_k=self.num_kept or None)
        found = [(file.name, file.num_bytes) for file in self.manifest.all_files]
        expected = [
            (f"{shard.name}{suffix}", shard.num_tokens * dtype.itemsize)
            for suffix, dtype in self._columns.items()
            for shard in corpus.manifest.shards
        ]
        if found != expected:
            sizes = " and of ".join(str(dtype.itemsize) for dtype in self._columns.values())
            raise ValueError(
                f"{self.folder}: expected a file of {sizes} bytes per token for each shard"
            )
        for file in self.manifest.all_files:
            checked_path(self.folder, file)
        self._corpus = corpus
        self._files = {file.name: file for file in self.manifest.all_files}
        self._open: dict[str, np.ndarray] = {}

    @property
    def num_kept(self) -> int:
        """How many likeliest tokens there are of each position; 0 where only scores were kept."""
        return self.manifest.top_k.k if self.manifest.top_k else 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the scores and what they mean."""
        unknown_before = {"top_k"} if self.manifest.top_k is None else set()
        content = self.manifest.model_dump_json(exclude={"name", "schema_version", *unknown_before})
        return hashlib.sha256(content.encode()).hexdigest()

    def document(self, i: int, split: Split = "train") -> np.ndarray:
        """Scores of the tokens of document `i`, float32 in nats."""
        scores = self._rows(i, split, suffix=SCORE_SUFFIX).astype(np.float32)
        if (scores < 0).any() or np.isinf(scores).any():
            raise ValueError(
                f"{self.folder}: document {i} of {split}: damaged: a score below 0 or infinite"
            )
        return scores

    def sample(self, index: PackIndex, i: int, split: Split = "train") -> np.ndarray:
        """Scores of the tokens of a packed sample, float32 `[S]`; NaN at the start of a piece.

        The first token of a piece has no context in the sample, so no prediction to score.
        """
        scores = np.full(index.seq_len, np.nan, dtype=np.float32)
        filled = 0
        for document, start, length in index.pieces(i, split).tolist():
            part = self.document(document, split)[start : start + length]
            scores[filled + 1 : filled + length] = part[1:]
            filled += length
        return scores

    def top_k(
        self, index: PackIndex, i: int, split: Split = "train", *, first: int = 0, count: int
    ) -> TopK:
        """The likeliest values of `count` tokens of a packed sample, from token `first` on.

        NaN at the start of a piece, as in `sample`, and behind the sample's end. For scores that
        have them.
        """
        rows = blank_rows(count, self._columns[TOP_K_SUFFIX])
        filled = 0
        for document, start, length in index.pieces(i, split).tolist():
            begin, end = max(filled + 1, first), min(filled + length, first + count)
            if begin < end:
                shift = start - filled
                kept = self._rows(document, split, suffix=TOP_K_SUFFIX)
                rows[begin - first : end - first] = kept[begin + shift : end + shift]
            filled += length
        found = TopK(rows["ids"].astype(np.int32), rows["log_probs"])
        if mistake := found.find_mistake(vocab_size=self._corpus.vocab_size):
            raise ValueError(f"{self.folder}: sample {i} of {split}: damaged: {mistake}")
        return found

    def top_k_files(self, splits: Sequence[Split]) -> list[tuple[Path, FileRecord]]:
        """Those of the likeliest tokens of some splits, each with its folder."""
        names = {
            f"{shard.name}{TOP_K_SUFFIX}"
            for split in splits
            for shard in self._corpus.manifest.split_shards(split)
        }
        return [(self.folder, file) for name, file in self._files.items() if name in names]

    def _rows(self, document: int, split: Split, *, suffix: str) -> np.ndarray:
        """Of the tokens of a document, as they are on disk."""
        shard, start, end = self._corpus.span(document, split)
        name = f"{shard.name}{suffix}"
        if name not in self._open:
            dtype = self._columns[suffix]
            self._open[name] = map_array(self.folder, self._files[name], dtype=dtype)
        return self._open[name][start:end]


def score_columns(corpus: Corpus, *, top_k: int | None) -> dict[str, np.dtype]:
    """By suffix of its files, what is kept of a token."""
    columns = {SCORE_SUFFIX: SCORE_DTYPE}
    if top_k is not None:
        columns[TOP_K_SUFFIX] = row_dtype(top_k, ids=corpus.manifest.dtype)
    return columns


def score_names(corpus_folder: Path) -> list[str]:
    """Names of the scores of a corpus, in alphabetical order."""
    there = sorted(
        path.parent.name for path in corpus_folder.glob(f"{SCORES_PREFIX}*/{SCORES_NAME}")
    )
    return [folder.removeprefix(SCORES_PREFIX) for folder in there]
