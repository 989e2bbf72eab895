"""Writes inputs to shards, resumably, with every document and token in the ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

import numpy as np

from common.progress import progress_bar
from data_prep.encode import Encoded, EncodeSettings, encode_task, tasks_of
from data_prep.executor import WorkerPool
from data_prep.journal import Journal, Position
from data_prep.ledger import SPLITS, Split, Tally
from data_prep.manifest import Shard
from data_prep.reading.documents import OnError, OnLoss
from data_prep.reading.formats import cut_files, describe_fault
from data_prep.reading.sources import DomainInput
from data_prep.shard_writer import ShardWriter

NUM_BAD_LISTED = 10
# The most that a kill can lose. Each commit waits for the disk.
COMMIT_SECONDS = 5.0


def write_corpus(
    domains: Sequence[DomainInput],
    *,
    settings: EncodeSettings,
    on_error: OnError,
    on_loss: OnLoss,
    max_shard_bytes: int,
    pool: WorkerPool,
    journal: Journal,
    into: Path,
) -> None:
    """Read, encode and write what the journal does not cover yet.

    Memory holds only two tasks per worker of the corpus. If this ends early, the journal is at
    the last commit.
    """
    start = journal.position
    total = sum(domain.num_bytes for domain in domains)
    with progress_bar(total or None, what="tokenise", unit="B", done=start.num_bytes) as bar:
        for number in range(start.domain, len(domains)):
            writer = _DomainWriter(
                domains[number],
                number=number,
                dtype_of=settings,
                max_shard_bytes=max_shard_bytes,
                on_error=on_error,
                on_loss=on_loss,
                journal=journal,
                into=into,
            )
            parts = _parts_left(domains[number], position=journal.position)
            tasks = tasks_of(parts, settings=settings, fields=domains[number].fields)
            try:
                with closing(pool.map_in_order(encode_task, tasks)) as results:
                    for encoded in results:
                        writer.add(encoded)
                        bar.update(encoded.num_bytes)
                writer.finish(next_domain=number + 1)
            except BaseException:
                # Keep what is complete, if the disk still allows; report the first error.
                with suppress(OSError):
                    writer.commit_if_whole()
                writer.abandon()
                raise


def _parts_left(domain: DomainInput, *, position: Position) -> Iterator:
    left = domain.files.from_number(position.file)
    first = next(left, None)
    if first is None:
        return iter(())
    start = position.start if first.number == position.file else 0
    return cut_files(chain([first], left), fields=domain.fields, start_in_first=start)


class _DomainWriter:
    """The shards and the tally of one domain, and the journal's view of both."""

    def __init__(
        self,
        domain: DomainInput,
        *,
        number: int,
        dtype_of: EncodeSettings,
        max_shard_bytes: int,
        on_error: OnError,
        on_loss: OnLoss,
        journal: Journal,
        into: Path,
    ) -> None:
        self._journal = journal
        self._on_error = on_error
        self._on_loss = on_loss
        self._domain = domain
        self._position = journal.position.model_copy(update={"domain": number})
        self._writers: dict[Split, ShardWriter] = {
            split: ShardWriter(
                into,
                domain=domain.name,
                split=split,
                dtype=dtype_of.dtype,
                max_shard_bytes=max_shard_bytes,
                has_mask=domain.fields.has_mask,
                resume=journal.position.open_shards.get(split),
            )
            for split in SPLITS
        }
        self._new_shards: list[Shard] = []
        self._is_whole = True
        self._committed_at = time.monotonic()

    def add(self, encoded: Encoded) -> None:
        """Write a task's results; a bad or a lossy document raises before any is written."""
        if encoded.bad and self._on_error == "fail":
            part, bad = encoded.bad[0]
            what = describe_fault(part.file, bad)
            raise ValueError(f"{what}; fix it, or add --on-error skip to skip it")
        if encoded.lossy and self._on_loss == "fail":
            raise ValueError(
                f"{encoded.lossy[0].sentence()}; use a tokenizer that can spell any text "
                "(byte-level BPE, or one with byte fallback) and does not rewrite it, or add "
                "--on-loss count to go on and count them"
            )
        self._is_whole = False
        is_wanted: dict[Split, np.ndarray] = {"train": ~encoded.is_val, "val": encoded.is_val}
        for split, writer in self._writers.items():
            self._new_shards += writer.add(encoded.documents.part(is_wanted[split]))
        tally = self._position.tallies.get(self._domain.name, Tally())
        tallies = {**self._position.tallies, self._domain.name: _added(tally, encoded)}
        self._position = self._position.model_copy(
            update={
                "file": encoded.last.file.number,
                "start": encoded.last.end,
                "tallies": tallies,
                "num_bytes": self._position.num_bytes + encoded.num_bytes,
            }
        )
        self._is_whole = True
        if time.monotonic() - self._committed_at >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make everything added durable: first the bytes, then the journal line for them."""
        open_shards = {split: writer.sync() for split, writer in self._writers.items()}
        position = self._position.model_copy(update={"open_shards": open_shards})
        self._journal.commit(position, new_shards=self._new_shards)
        self._new_shards = []
        self._committed_at = time.monotonic()

    def commit_if_whole(self) -> None:
        """Commit unless a task is half written: part of one must never be committed."""
        if self._is_whole:
            self.commit()

    def finish(self, *, next_domain: int) -> None:
        self._is_whole = False
        for split in SPLITS:
            self._new_shards += self._writers[split].close()
        position = self._position.model_copy(
            update={
                "domain": next_domain,
                "file": self._domain.files.next_number,
                "start": 0,
                "open_shards": {},
            }
        )
        self._journal.commit(position, new_shards=self._new_shards)

    def abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()


def _added(tally: Tally, encoded: Encoded) -> Tally:
    reasons = Counter(tally.bad_by_reason)
    reasons.update(bad.reason for _, bad in encoded.bad)
    left_out = Counter(tally.members_left_out)
    listed = list(tally.first_bad)
    for part, bad in encoded.bad[: NUM_BAD_LISTED - len(listed)]:
        listed.append(describe_fault(part.file, bad))
    losses = list(tally.first_losses)
    losses += [lossy.sentence() for lossy in encoded.lossy[: NUM_BAD_LISTED - len(losses)]]
    return Tally(
        num_documents=tally.num_documents + encoded.num_read,
        num_empty=tally.num_empty + encoded.num_empty,
        num_tokens=tally.num_tokens + len(encoded.documents.tokens),
        num_special_tokens=tally.num_special_tokens + encoded.num_special_tokens,
        num_tokens_left_out=tally.num_tokens_left_out
        + sum(bad.num_tokens for _, bad in encoded.bad),
        bad_by_reason=dict(sorted(reasons.items())),
        first_bad=tuple(listed),
        members_left_out=dict(sorted((left_out + encoded.members_left_out).items())),
        num_documents_checked=tally.num_documents_checked + encoded.num_checked,
        num_documents_with_loss=tally.num_documents_with_loss + len(encoded.lossy),
        num_chars_lost=tally.num_chars_lost + sum(d.loss.num_chars for d in encoded.lossy),
        first_losses=tuple(losses),
    )
