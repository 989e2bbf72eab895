"""The reader of a pack: samples of one length, put together from documents when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from data_prep.ledger import SPLITS, Split
from data_prep.mapped import checked_path, map_array
from data_prep.record import Count, FileRecord, Record, Sha256, files_sha256, load_record

if TYPE_CHECKING:
    from data_prep.shards import Corpus

PACK_NAME = "pack.json"
PIECE_FIELDS = 3  # document, start, length
INDEX_DTYPE = np.dtype("<i8")
Policy = Literal["best_fit", "concat"]


@dataclass(frozen=True)
class PackedSample:
    """`T` tokens of one or more pieces of documents; padding is a last piece of its own."""

    ids: np.ndarray  # [T] int64
    position_ids: np.ndarray  # [T] int64, from 0 in every piece
    num_tokens: int  # real tokens; what follows is padding


class SplitPack(Record):
    num_samples: Count
    num_pieces: Count
    num_tokens: Count
    num_targets: Count
    num_padding: Count
    pieces: FileRecord
    samples: FileRecord


class PackManifest(Record):
    schema_version: Literal[1]
    seq_len: Annotated[int, Field(ge=2, le=2**31)]
    policy: Policy
    corpus_fingerprint: Sha256
    splits: dict[Split, SplitPack]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if set(self.splits) != set(SPLITS):
            raise ValueError(f"splits: expected {list(SPLITS)}, found {sorted(self.splits)}")
        for split, part in self.splits.items():
            expected = {
                "num_targets": (part.num_targets, part.num_tokens - part.num_pieces),
                "num_padding": (
                    part.num_padding,
                    part.num_samples * self.seq_len - part.num_tokens,
                ),
                "pieces bytes": (part.pieces.num_bytes, part.num_pieces * PIECE_FIELDS * 8),
                "samples bytes": (part.samples.num_bytes, (part.num_samples + 1) * 8),
            }
            for what, (found, right) in expected.items():
                if found != right:
                    raise ValueError(f"{split} {what}: expected {right}, found {found}")
        return self

    @property
    def fingerprint(self) -> str:
        """Changes with the corpus, the length or the packing: the identity of a sample number."""
        files = [f for part in self.splits.values() for f in (part.pieces, part.samples)]
        files.append(FileRecord(name="corpus", num_bytes=0, sha256=self.corpus_fingerprint))
        return files_sha256(files)


def pack_folder(corpus_folder: Path, *, seq_len: int) -> Path:
    return corpus_folder / f"pack-{seq_len}"


class PackIndex:
    """Samples by number within a split. Pickles as the corpus path and the length alone."""

    def __init__(self, corpus: Corpus, *, seq_len: int) -> None:
        self.folder = pack_folder(corpus.folder, seq_len=seq_len)
        how = f"`python -m data_prep pack {corpus.folder} --seq-len {seq_len}`"
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: not packed for {seq_len} tokens; run {how} first")
        self.manifest = load_record(PackManifest, self.folder / PACK_NAME, made_by=how)
        if self.manifest.seq_len != seq_len:
            raise ValueError(
                f"{self.folder}: seq_len: expected {seq_len}, found {self.manifest.seq_len}"
            )
        if self.manifest.corpus_fingerprint != corpus.fingerprint:
            raise ValueError(
                f"{self.folder}: made for another corpus: expected fingerprint "
                f"{corpus.fingerprint[:16]}, found {self.manifest.corpus_fingerprint[:16]}; "
                f"run {how} --overwrite"
            )
        for split in SPLITS:
            for file in (self.manifest.splits[split].pieces, self.manifest.splits[split].samples):
                checked_path(self.folder, file)
        self.seq_len = seq_len
        self.policy = self.manifest.policy
        self.fingerprint = self.manifest.fingerprint
        self._corpus = corpus
        # Padding is never a target and never attended to, so any id will do.
        self._pad_id = corpus.manifest.special_ids.pad or 0
        self._arrays: dict[Split, tuple[np.ndarray, np.ndarray]] = {}

    def __reduce__(self) -> tuple[object, tuple[Corpus, int]]:
        return _reopen, (self._corpus, self.seq_len)

    def num_samples(self, split: Split = "train") -> int:
        return self.manifest.splits[split].num_samples

    def num_tokens(self, split: Split = "train") -> int:
        return self.manifest.splits[split].num_tokens

    def num_targets(self, split: Split = "train") -> int:
        """Tokens that can be predicted: all but the first of each piece."""
        return self.manifest.splits[split].num_targets

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Pieces `[P, 3]` (document, start, length) and sample bounds `[num_samples + 1]`."""
        if split not in self._arrays:
            part = self.manifest.splits[split]
            pieces = map_array(self.folder, part.pieces, dtype=INDEX_DTYPE)
            samples = map_array(self.folder, part.samples, dtype=INDEX_DTYPE)
            self._arrays[split] = (pieces.reshape(-1, PIECE_FIELDS), samples)
        return self._arrays[split]

    def pieces(self, i: int, split: Split = "train") -> np.ndarray:
        """The pieces of sample `i`, `[n, 3]`."""
        if not 0 <= i < self.num_samples(split):
            raise IndexError(f"sample {i} of {split}: there are {self.num_samples(split)}")
        pieces, samples = self.arrays(split)
        first, last = int(samples[i]), int(samples[i + 1])
        if not 0 <= first <= last <= len(pieces):
            raise self._damaged(i, split, found=f"pieces [{first}, {last}) of {len(pieces)}")
        return pieces[first:last]

    def sample(self, i: int, split: Split = "train") -> PackedSample:
        """Put sample `i` together: one small copy out of the maps."""
        ids_T = np.full(self.seq_len, self._pad_id, dtype=np.int64)
        position_ids_T = np.empty(self.seq_len, dtype=np.int64)
        filled = 0
        for document, start, length in self.pieces(i, split).tolist():
            if not 0 <= document < self._corpus.num_documents(split):
                raise self._damaged(i, split, found=f"document {document}")
            ids = self._corpus.document(document, split)
            if start < 0 or length < 1 or start + length > len(ids):
                found = f"tokens [{start}, {start + length}) of {len(ids)} of document {document}"
                raise self._damaged(i, split, found=found)
            if filled + length > self.seq_len:
                raise self._damaged(i, split, found=f"more than {self.seq_len} tokens")
            ids_T[filled : filled + length] = ids[start : start + length]
            position_ids_T[filled : filled + length] = np.arange(length)
            filled += length
        position_ids_T[filled:] = np.arange(self.seq_len - filled)
        return PackedSample(ids=ids_T, position_ids=position_ids_T, num_tokens=filled)

    def _damaged(self, i: int, split: Split, *, found: str) -> ValueError:
        return ValueError(f"{self.folder}: damaged sample {i} of {split}: {found}; pack again")


def _reopen(corpus: Corpus, seq_len: int) -> PackIndex:
    return PackIndex(corpus, seq_len=seq_len)
