"""What to show: samples or documents as pieces of tokens, with all that is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.commands import command
from data_prep.ledger import Split
from data_prep.packing.index import PackIndex
from data_prep.record import Count, Record, Sha256, load_record
from data_prep.scores import Scores
from data_prep.shards import Corpus, open_corpus
from data_prep.tokenizing.tokenizer import Tokenizer, load_tokenizer
from data_prep.viewing.token_texts import part_bytes


@dataclass(frozen=True)
class Piece:
    """Tokens of one document, back to back."""

    title: str
    """Which document, which of its tokens, where it came from."""
    first: int
    """Position of the first token in the sample."""
    ids: np.ndarray
    in_loss: np.ndarray
    """bool: not masked out of the loss."""
    scores: np.ndarray | None
    """float32 nats, NaN for none."""
    is_dropped: np.ndarray
    """bool: dropped by the recipe and epoch asked for."""


@dataclass(frozen=True)
class Shown:
    """A sample, or a document."""

    title: str
    """Of a sample; a document has the title of its one piece."""
    pieces: tuple[Piece, ...]
    num_padding: int


class SampleDrops(Record):
    sample: Count
    step: Count
    gamma: Annotated[float, Field(ge=0, le=1)]
    threshold_nats: float | None
    dropped: tuple[Count, ...]


class Drops(Record):
    """The output of `python -m training preview`."""

    pack: Sha256
    split: Split
    seq_len: Count
    epoch: Count
    scores: str
    where: Literal["input", "loss", "both"]
    quantile: float
    samples: tuple[SampleDrops, ...]


@dataclass(frozen=True)
class Selection:
    """What the user asked to see."""

    folder: Path
    seq_len: int | None
    """None shows documents."""
    split: Split
    numbers: Sequence[int]
    scores: str | None = None
    drops: Path | None = None


class View:
    """A corpus opened for viewing."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.corpus: Corpus = open_corpus(selection.folder)
        self.tokenizer: Tokenizer = load_tokenizer(self.corpus.tokenizer_dir, fast=False)
        self.part_bytes = part_bytes(self.corpus.tokenizer_dir)
        self.index: PackIndex | None = (
            None if selection.seq_len is None else self.corpus.open_pack(selection.seq_len)
        )
        self.drops = self._load_drops()
        scores = selection.scores or (self.drops and self.drops.scores)
        self.scores: Scores | None = self.corpus.open_scores(scores) if scores else None
        self._dropped = {part.sample: part for part in self.drops.samples} if self.drops else {}
        self._check_numbers()

    def __iter__(self) -> Iterator[Shown]:
        for number in self.selection.numbers:
            yield self._document(number) if self.index is None else self._sample(number, self.index)

    def _load_drops(self) -> Drops | None:
        path, asked = self.selection.drops, self.selection
        if path is None:
            return None
        drops = load_record(Drops, path, made_by=f"`{command('training preview')}`")
        if self.index is None or drops.pack != self.index.fingerprint or drops.split != asked.split:
            raise ValueError(
                f"--drops {path}: made for {drops.split} samples of {drops.seq_len} tokens; show "
                f"the same unchanged pack: --split {drops.split} --seq-len {drops.seq_len}"
            )
        return drops

    def _check_numbers(self) -> None:
        split = self.selection.split
        what = "documents" if self.index is None else "samples"
        total = (
            self.corpus.num_documents(split)
            if self.index is None
            else self.index.num_samples(split)
        )
        for number in self.selection.numbers:
            if not 0 <= number < total:
                raise ValueError(f"--sample {number}: {split} has {total:,} {what}, from 0")
            if self.drops and number not in self._dropped:
                held = ", ".join(map(str, self._dropped))
                raise ValueError(f"--sample {number}: {self.selection.drops} covers samples {held}")

    def _document(self, number: int) -> Shown:
        split = self.selection.split
        length = len(self.corpus.document(number, split))
        return Shown("", (self._piece(number, start=0, length=length, first=0),), 0)

    def _sample(self, number: int, index: PackIndex) -> Shown:
        split = self.selection.split
        pieces, filled = [], 0
        dropped = np.zeros(index.seq_len, dtype=bool)
        if number in self._dropped:
            positions = np.array(self._dropped[number].dropped, dtype=np.int64)
            dropped[positions[positions < index.seq_len]] = True
        for document, start, length in index.pieces(number, split).tolist():
            pieces.append(
                self._piece(
                    document,
                    start=start,
                    length=length,
                    first=filled,
                    dropped=dropped[filled : filled + length],
                )
            )
            filled += length
        num_padding = index.seq_len - filled
        title = (
            f"sample {number:,} of {split}: {filled:,} tokens in {len(pieces)} "
            f"piece{'' if len(pieces) == 1 else 's'}, {num_padding:,} padding"
        )
        if number in self._dropped:
            part = self._dropped[number]
            title += f"; step {part.step:,}, gamma {part.gamma:.3f}"
            title += f": {len(part.dropped):,} tokens dropped"
            if part.threshold_nats is not None:
                title += f", low up to {part.threshold_nats:.3f} nats"
        return Shown(title, tuple(pieces), num_padding)

    def _piece(
        self,
        document: int,
        *,
        start: int,
        length: int,
        first: int,
        dropped: np.ndarray | None = None,
    ) -> Piece:
        split = self.selection.split
        part = slice(start, start + length)
        whole = self.corpus.document(document, split)
        mask = self.corpus.loss_mask(document, split)
        scores = None
        if self.scores is not None:
            scores = self.scores.document(document, split)[part].copy()
            scores[:1] = np.nan  # the first of a piece is not predicted
        title = f"document {document:,} of {split}: {length:,}"
        if length < len(whole):
            title += f" of its {len(whole):,} tokens, {start:,} to {start + length - 1:,}"
        else:
            title += " tokens"
        if mask is not None:
            title += f", {int(mask[part].sum()):,} in the loss"
        return Piece(
            title=f"{title}, from {self.corpus.origin(document, split)}",
            first=first,
            ids=whole[part],
            in_loss=np.ones(length, bool) if mask is None else mask[part].astype(bool),
            scores=scores,
            is_dropped=np.zeros(length, bool) if dropped is None else dropped,
        )
