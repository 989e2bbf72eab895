"""Token scores stored next to a corpus: an entropy per token of the shards, as float16."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from common.commands import command
from data_prep.durable import (
    clear_staged,
    describe_file,
    refuse_existing,
    staged_folder,
    write_durable,
)
from data_prep.ledger import Split
from data_prep.manifest import Shard
from data_prep.mapped import checked_path, map_array
from data_prep.packing.index import PackIndex
from data_prep.record import FileRecord, Record, Sha256, load_record, record_text

if TYPE_CHECKING:
    from data_prep.shards import Corpus

SCORES_NAME = "scores.json"
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
_PREFIX = "scores-"
_DTYPE = np.dtype("<f2")
_BLOCK_TOKENS = 1 << 22
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


class Scores:
    """Scores by document or sample; NaN for a token without one, such as a document's first."""

    def __init__(self, corpus: Corpus, *, name: str) -> None:
        self.folder = corpus.folder / f"{_PREFIX}{name}"
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
        shards = corpus.manifest.shards
        expected = [(f"{s.name}.f16", s.num_tokens * _DTYPE.itemsize) for s in shards]
        found = [(file.name, file.num_bytes) for file in self.manifest.files]
        if found != expected:
            raise ValueError(f"{self.folder}: expected a file of 2 bytes per token for each shard")
        for file in self.manifest.files:
            checked_path(self.folder, file)
        self._corpus = corpus
        self._files = dict(zip((s.name for s in shards), self.manifest.files, strict=True))
        self._open: dict[str, np.ndarray] = {}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the scores and what they mean."""
        content = self.manifest.model_dump_json(exclude={"name", "schema_version"})
        return hashlib.sha256(content.encode()).hexdigest()

    def document(self, i: int, split: Split = "train") -> np.ndarray:
        """Scores of the tokens of document `i`, float32 in nats."""
        shard, start, end = self._corpus.span(i, split)
        if shard.name not in self._open:
            self._open[shard.name] = map_array(self.folder, self._files[shard.name], dtype=_DTYPE)
        scores = self._open[shard.name][start:end].astype(np.float32)
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


def score_names(corpus_folder: Path) -> list[str]:
    """Names of the scores of a corpus, in alphabetical order."""
    there = sorted(path.parent.name for path in corpus_folder.glob(f"{_PREFIX}*/{SCORES_NAME}"))
    return [folder.removeprefix(_PREFIX) for folder in there]


class ScoresWriter:
    """Writes scores by sample of a pack; after a restart, committed work is not repeated."""

    def __init__(self, corpus: Corpus, staging: Path, *, plan: dict[str, Any]) -> None:
        """Resume from `staging` if it was made by the same plan."""
        self._corpus, self.staging = corpus, staging
        self._plan_path = staging.parent / "plan.json"
        self._position_path = staging.parent / "position.json"
        self._plan = json.dumps(plan, sort_keys=True).encode()
        self.is_new = not self._plan_path.is_file() or self._plan_path.read_bytes() != self._plan
        """Whether its files are still to be made, by `make_files`."""
        if self.is_new:
            clear_staged(staging)
        self._maps: dict[str, np.memmap] = {}
        self.files: list[FileRecord] = []
        """What the finished files are, in the shards' order, as `describe_files` says."""

    def begin(self) -> None:
        """Open the files, which exist now.

        Raises:
            ValueError: when one is not there: a rank has made it elsewhere.
        """
        for shard in self._corpus.manifest.shards:
            path = self.staging / _file_name(shard)
            if not path.is_file() or path.stat().st_size != shard.num_tokens * _DTYPE.itemsize:
                raise ValueError(
                    f"{path}: another process has made it, and it is not there: all of them must "
                    "see the folder of the corpus, and may write there"
                )
            if shard.num_tokens:
                self._maps[shard.name] = np.memmap(path, dtype=_DTYPE, mode="r+")
        write_durable(self._plan_path, self._plan)

    @property
    def num_done(self) -> int:
        """Samples committed so far, of train and then of val."""
        if not self._position_path.is_file():
            return 0
        return int(json.loads(self._position_path.read_bytes())["num_done"])

    def put_sample(self, index: PackIndex, i: int, split: Split, values: np.ndarray) -> None:
        """Store the scores of a sample's predictions.

        Args:
            values: `[S]`, in nats; position p scores the token at p + 1. NaN for no score.
        """
        filled = 0
        for document, start, length in index.pieces(i, split).tolist():
            shard, first, _ = self._corpus.span(document, split)
            begin = first + start
            part = _narrowed(values[filled : filled + length - 1], what=f"sample {i} of {split}")
            self._maps[shard.name][begin + 1 : begin + length] = part
            filled += length

    def commit(self, num_done: int) -> None:
        """Make all stored scores durable, and then the count of finished samples."""
        for mapped in self._maps.values():
            mapped.flush()
        content = json.dumps({"num_done": num_done}).encode()
        write_durable(self._position_path, content)


@contextmanager
def open_scores_writer(
    corpus: Corpus, *, name: str, measure: Measure, model: str, seq_len: int, overwrite: bool
) -> Iterator[ScoresWriter]:
    """A writer whose scores appear when the block succeeds; otherwise the next run resumes."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"--name {name!r}: use at most 64 letters, digits, '_', '-' and '.'")
    out = corpus.folder / f"{_PREFIX}{name}"
    refuse_existing(out, marker=SCORES_NAME, overwrite=overwrite)
    facts: dict[str, Any] = {
        "name": name,
        "measure": measure,
        "model": model,
        "seq_len": seq_len,
        "corpus_fingerprint": corpus.fingerprint,
    }
    with staged_folder(out, keeps_unfinished=True) as staging:
        writer = ScoresWriter(corpus, staging, plan=facts)
        yield writer
        manifest = ScoresManifest(schema_version=1, files=tuple(writer.files), **facts)
        write_durable(staging / SCORES_NAME, record_text(manifest))


def make_files(corpus: Corpus, staging: Path, *, rank: int = 0, world_size: int = 1) -> None:
    """Make a rank's share of the files, full of NaN, durably."""
    for shard in corpus.manifest.shards[rank::world_size]:
        _fill_with_nan(staging / _file_name(shard), num_tokens=shard.num_tokens)


def describe_files(
    corpus: Corpus, staging: Path, *, rank: int = 0, world_size: int = 1
) -> list[FileRecord]:
    """Sizes and checksums of a rank's share of the files."""
    shards = corpus.manifest.shards[rank::world_size]
    return [describe_file(staging / _file_name(shard)) for shard in shards]


def _file_name(shard: Shard) -> str:
    return f"{shard.name}.f16"


def _narrowed(scores: np.ndarray, *, what: str) -> np.ndarray:
    """As float16, whose maximum is 65,504: no entropy of any vocabulary exceeds it."""
    if (scores < 0).any() or (scores > np.finfo(_DTYPE).max).any():
        raise ValueError(f"{what}: expected scores of 0 or more, and below 65,504")
    return scores.astype(_DTYPE)


def _fill_with_nan(path: Path, *, num_tokens: int) -> None:
    block = np.full(min(num_tokens, _BLOCK_TOKENS), np.nan, dtype=_DTYPE)
    with path.open("wb") as file:
        for start in range(0, num_tokens, _BLOCK_TOKENS):
            file.write(block[: num_tokens - start].data)
        file.flush()
        os.fsync(file.fileno())
