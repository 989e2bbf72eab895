"""The reader of a corpus folder: documents and packed samples as views of files on disk."""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_prep.manifest import SPLITS, Manifest, Shard, Split, load_manifest
from data_prep.mapped import checked_path, map_array
from data_prep.packing.index import PackedSample, PackIndex

__all__ = ["Corpus", "PackIndex", "PackedSample", "open_corpus"]


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """Open a folder that `python -m data_prep build` wrote; sizes are checked, nothing is read."""
    path = Path(folder)
    manifest = load_manifest(path)
    for file in manifest.shard_files():
        checked_path(path, file)
    return Corpus(path, manifest=manifest)


class Corpus:
    """Documents by number within a split, over all shards. Pickles as its path alone."""

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
        self._arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open_corpus, (str(self.folder),)

    def num_documents(self, split: Split = "train") -> int:
        return self._first_document[_known(split)][-1]

    def num_tokens(self, split: Split = "train") -> int:
        return sum(shard.num_tokens for shard in self._shards[_known(split)])

    def document(self, i: int, split: Split = "train") -> np.ndarray:
        """The ids of document `i` as a read-only view, uint16 or uint32."""
        first_document = self._first_document[_known(split)]
        if not 0 <= i < first_document[-1]:
            raise IndexError(f"document {i} of {split}: there are {first_document[-1]}")
        number = bisect_right(first_document, i) - 1
        shard = self._shards[split][number]
        tokens, offsets = self._open_shard(shard)
        row = i - first_document[number]
        start, end = int(offsets[row]), int(offsets[row + 1])
        if not 0 <= start <= end <= len(tokens):
            raise ValueError(
                f"{shard.docs.name}: damaged: document {row} spans [{start}, {end}), "
                f"expected bounds within [0, {len(tokens)}]; copy or build the corpus again"
            )
        return tokens[start:end]

    def document_lengths(self, split: Split = "train") -> np.ndarray:
        """Tokens of every document, int64: 8 bytes a document in memory, for the packer."""
        lengths = [np.diff(self._open_shard(shard)[1]) for shard in self._shards[_known(split)]]
        return np.concatenate([np.zeros(0, dtype=np.int64), *lengths])

    def shard_arrays(self, split: Split) -> list[tuple[Shard, np.ndarray, np.ndarray]]:
        """Every shard of a split with its ids and its document offsets, mapped."""
        return [(shard, *self._open_shard(shard)) for shard in self._shards[_known(split)]]

    def open_pack(self, seq_len: int) -> PackIndex:
        """The samples of `seq_len` tokens that `python -m data_prep pack` made of this corpus."""
        return PackIndex(self, seq_len=seq_len)

    def _open_shard(self, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
        if shard.name not in self._arrays:
            self._arrays[shard.name] = (
                map_array(self.folder, shard.tokens, dtype=self.manifest.dtype),
                map_array(self.folder, shard.docs, dtype=np.dtype("<i8")),
            )
        return self._arrays[shard.name]


def _known(split: Split) -> Split:
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: a corpus has {' and '.join(SPLITS)}")
    return split
