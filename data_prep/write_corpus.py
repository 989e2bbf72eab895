"""Documents to shards, with every document and every token in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.encode import EncodedBatch, EncodeSettings, batches, encode_batch
from data_prep.executor import map_in_order, open_executor
from data_prep.manifest import SPLITS, Ledger, Shard, Split, SplitLedger
from data_prep.progress import bytes_bar
from data_prep.reading.documents import Intake, ReadOptions
from data_prep.reading.readers import read_documents
from data_prep.reading.sources import InputFile
from data_prep.shard_writer import ShardWriter


@dataclass(frozen=True)
class Written:
    shards: tuple[Shard, ...]
    ledger: Ledger


@dataclass
class _Tally:
    """What encoding adds to the ledger."""

    num_tokens: int = 0
    num_special_tokens: int = 0
    num_empty: int = 0

    def add(self, batch: EncodedBatch) -> None:
        self.num_tokens += len(batch.tokens)
        self.num_special_tokens += batch.num_special_tokens
        self.num_empty += batch.num_empty


def write_corpus(
    files: Sequence[InputFile],
    *,
    read: ReadOptions,
    encode: EncodeSettings,
    num_workers: int,
    max_shard_bytes: int,
    into: Path,
) -> Written:
    """Read, encode and write. Memory holds two batches a worker and no more of the corpus."""
    writers = {
        split: ShardWriter(into, split=split, dtype=encode.dtype, max_shard_bytes=max_shard_bytes)
        for split in SPLITS
    }
    intake, tally = Intake(), _Tally()
    documents = read_documents(files, options=read, intake=intake)
    tasks = batches(documents, settings=encode)
    with (
        open_executor(num_workers) as (executor, num_came),
        bytes_bar(files, what="tokenise") as bar,
    ):
        window = 2 * num_came
        results = map_in_order(encode_batch, tasks, executor=executor, window=window)
        with closing(results):
            for batch in results:
                tally.add(batch)
                _write_batch(batch, writers=writers)
                bar.update(intake.num_bytes_read - bar.n)
    shards = tuple(shard for split in SPLITS for shard in writers[split].close())
    return Written(shards, _ledger(intake, tally=tally, shards=shards))


def _write_batch(batch: EncodedBatch, *, writers: dict[Split, ShardWriter]) -> None:
    token_is_val = np.repeat(batch.is_val, batch.lengths)
    writers["train"].add(batch.tokens[~token_is_val], lengths=batch.lengths[~batch.is_val])
    writers["val"].add(batch.tokens[token_is_val], lengths=batch.lengths[batch.is_val])


def _ledger(intake: Intake, *, tally: _Tally, shards: Sequence[Shard]) -> Ledger:
    """Kept counts come from the shards, the others from reading, so that they check each other."""
    by_split = {
        split: SplitLedger(
            num_documents=sum(s.num_documents for s in shards if s.split == split),
            num_tokens=sum(s.num_tokens for s in shards if s.split == split),
        )
        for split in SPLITS
    }
    num_from_documents = tally.num_tokens - tally.num_special_tokens
    ledger = Ledger(
        num_documents_in=intake.num_documents,
        num_documents_empty=intake.num_empty + tally.num_empty,
        num_documents_bad=sum(intake.bad_by_reason.values()),
        num_documents_kept=sum(part.num_documents for part in by_split.values()),
        num_tokens_in=num_from_documents + intake.num_tokens_left_out,
        num_tokens_special=tally.num_special_tokens,
        num_tokens_left_out=intake.num_tokens_left_out,
        num_tokens_kept=sum(part.num_tokens for part in by_split.values()),
        by_split=by_split,
        bad_by_reason=dict(sorted(intake.bad_by_reason.items())),
        first_bad=tuple(intake.first_bad),
    )
    ledger.check()
    return ledger
