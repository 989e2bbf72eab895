"""The reader of a corpus folder: documents and packed samples as views of files on disk."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.checksums import check_share
from data_prep.ledger import SPLITS, Split
from data_prep.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest
from data_prep.mapped import checked_path, map_array
from data_prep.packing.index import PackedSample, PackIndex
from data_prep.packing.manifest import pack_folder
from data_prep.packing.mixture import Mixture, describe, with_replay
from data_prep.record import FileRecord, printable_path
from data_prep.scores import Scores, score_names
from data_prep.scores_writer import (
    ScoresWriter,
    describe_files,
    make_files,
    open_scores_writer,
)
from data_prep.top_k import TopK, no_top_k

if TYPE_CHECKING:
    from data_prep.tokenizing.tokenizer import Tokenizer

__all__ = [
    "Corpus",
    "FileRecord",
    "Mixture",
    "Origin",
    "PackIndex",
    "PackedSample",
    "Scores",
    "ScoresWriter",
    "TopK",
    "check_share",
    "describe",
    "describe_files",
    "is_corpus",
    "make_files",
    "no_top_k",
    "open_corpus",
    "open_scores_writer",
    "read_files",
    "with_replay",
]


@dataclass(frozen=True)
class Origin:
    """Where a document came from."""

    path: str
    place: int
    """First byte of its line (after decompression), or its row from 0; 0 for a whole file."""

    def __str__(self) -> str:
        return f"{printable_path(self.path)}@{self.place}"


@dataclass(frozen=True)
class MappedShard:
    """The memory maps of one shard."""

    shard: Shard
    tokens: np.ndarray
    offsets: np.ndarray
    origins: np.ndarray
    mask: np.ndarray | None


def is_corpus(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a finished build, or anything else with its manifest's name."""
    return (Path(folder) / MANIFEST_NAME).exists()


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """Open a folder that `python -m data_prep build` wrote; sizes are checked, nothing is read."""
    path = Path(folder)
    manifest = load_manifest(path)
    for file in manifest.files():
        checked_path(path, file)
    return Corpus(path, manifest=manifest)


def read_files(
    pack: PackIndex, scores: Scores | None = None, *, splits: Sequence[Split] = SPLITS
) -> list[tuple[Path, FileRecord]]:
    """Every file that training may read, each with its folder.

    Args:
        splits: whose shards are read.
    """
    corpus = pack.corpus
    files = [(corpus.folder, file) for file in corpus.manifest.files(splits)]
    files += [(corpus.tokenizer_dir, file) for file in corpus.manifest.tokenizer.files]
    files += [(pack.folder, file) for file in pack.files()]
    return files + ([(scores.folder, file) for file in scores.manifest.files] if scores else [])


class Corpus:
    """Documents by number within a split, over all shards. Pickles only its path."""

    def __init__(self, folder: Path, *, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.vocab_size = manifest.vocab_size
        self.tokenizer_dir = folder / "tokenizer"
        self._shards: dict[Split, list[Shard]] = {s: manifest.split_shards(s) for s in SPLITS}
        # Documents before each shard: with 3, 5 and 2 documents in shards, [0, 3, 8, 10].
        self._first_document: dict[Split, list[int]] = {
            split: list(accumulate((s.num_documents for s in shards), initial=0))
            for split, shards in self._shards.items()
        }
        self._open: dict[str, MappedShard] = {}

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open_corpus, (str(self.folder),)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What made its ids, in the library that made them."""
        from data_prep.tokenizing.tokenizer import load_tokenizer  # few readers need its libraries

        return load_tokenizer(self.tokenizer_dir, fast=False)

    def num_documents(self, split: Split = "train") -> int:
        return self._first_document[_known(split)][-1]

    def num_tokens(self, split: Split = "train") -> int:
        return sum(shard.num_tokens for shard in self._shards[_known(split)])

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the corpus's domains, in the order of their documents."""
        return tuple(domain.name for domain in self.manifest.domains)

    def domain_documents(self, split: Split = "train") -> dict[str, range]:
        """The document numbers of each domain, which are contiguous."""
        ranges, first = {}, 0
        for name in self.domains:
            own = [s.num_documents for s in self._shards[_known(split)] if s.domain == name]
            ranges[name] = range(first, first + sum(own))
            first += sum(own)
        return ranges

    def document(self, i: int, split: Split = "train") -> np.ndarray:
        """The ids of document `i` as a read-only view, uint16 or uint32."""
        opened, row = self._find(i, split)
        start, end = _bounds(opened, row)
        return opened.tokens[start:end]

    def span(self, i: int, split: Split = "train") -> tuple[Shard, int, int]:
        """The shard that holds document `i`, its first token there and the one after its last."""
        opened, row = self._find(i, split)
        return opened.shard, *_bounds(opened, row)

    def loss_mask(self, i: int, split: Split = "train") -> np.ndarray | None:
        """1 for each token of document `i` that is a target; None when all are."""
        opened, row = self._find(i, split)
        start, end = _bounds(opened, row)
        return None if opened.mask is None else opened.mask[start:end]

    def origin(self, i: int, split: Split = "train") -> Origin:
        """The input file that document `i` came from, and its place there."""
        opened, row = self._find(i, split)
        file, place = opened.origins[row].tolist()
        if not 0 <= file < len(self._input_ends):
            raise ValueError(
                f"{opened.shard.origins.name}: damaged: document {row} is from input {file}, "
                f"expected one of {len(self._input_ends)}"
            )
        return Origin(self._input_path(file), place)

    def document_lengths(self, split: Split = "train") -> np.ndarray:
        """Tokens of every document, int64: 8 bytes a document in memory, for the packer."""
        lengths = [np.diff(opened.offsets) for opened in self.open_shards(split)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *lengths])

    def open_shards(self, split: Split) -> list[MappedShard]:
        """The shards of a split in order, mapped: `.shard`, `.tokens`, `.offsets`, `.mask`."""
        return [self._open_shard(shard) for shard in self._shards[_known(split)]]

    def has_pack(self, seq_len: int) -> bool:
        """Whether there is something for `open_pack` to open, complete or not."""
        return pack_folder(self.folder, seq_len=seq_len).exists()

    def open_pack(self, seq_len: int) -> PackIndex:
        """The samples of `seq_len` tokens that `python -m data_prep pack` made of this corpus."""
        return PackIndex(self, seq_len=seq_len)

    def score_names(self) -> list[str]:
        """The names that `open_scores` accepts."""
        return score_names(self.folder)

    def open_scores(self, name: str) -> Scores:
        """The token scores that `python -m data_prep score` wrote for this corpus."""
        return Scores(self, name=name)

    def _find(self, i: int, split: Split) -> tuple[MappedShard, int]:
        first_document = self._first_document[_known(split)]
        if not 0 <= i < first_document[-1]:
            raise IndexError(f"document {i} of {split}: there are {first_document[-1]}")
        number = bisect_right(first_document, i) - 1
        return self._open_shard(self._shards[split][number]), i - first_document[number]

    def _open_shard(self, shard: Shard) -> MappedShard:
        if shard.name not in self._open:
            byte, offset = np.dtype("u1"), np.dtype("<i8")
            self._open[shard.name] = MappedShard(
                shard=shard,
                tokens=map_array(self.folder, shard.tokens, dtype=self.manifest.dtype),
                offsets=map_array(self.folder, shard.docs, dtype=offset),
                origins=map_array(self.folder, shard.origins, dtype=offset).reshape(-1, 2),
                mask=None if shard.mask is None else map_array(self.folder, shard.mask, dtype=byte),
            )
        return self._open[shard.name]

    @cached_property
    def _input_text(self) -> np.ndarray:
        """The list of the input files, mapped: a line of JSON for each, and perhaps millions."""
        return map_array(self.folder, self.manifest.inputs, dtype=np.dtype(np.uint8))

    @cached_property
    def _input_ends(self) -> np.ndarray:
        """Where each line of it ends."""
        return np.flatnonzero(self._input_text == ord("\n"))

    def _input_path(self, number: int) -> str:
        start = int(self._input_ends[number - 1]) + 1 if number else 0
        line = self._input_text[start : int(self._input_ends[number])].tobytes()
        try:
            return str(json.loads(line)["path"])
        except (ValueError, TypeError, KeyError) as error:
            path = self.folder / self.manifest.inputs.name
            raise ValueError(f"{path}: damaged: {error}; build the corpus again") from None


def _bounds(opened: MappedShard, row: int) -> tuple[int, int]:
    start, end = int(opened.offsets[row]), int(opened.offsets[row + 1])
    if not 0 <= start <= end <= len(opened.tokens):
        raise ValueError(
            f"{opened.shard.docs.name}: damaged: document {row} spans [{start}, {end}), "
            f"expected bounds within [0, {len(opened.tokens)}]; copy or build the corpus again"
        )
    return start, end


def _known(split: Split) -> Split:
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: a corpus has {' and '.join(SPLITS)}")
    return split
