"""The reader of a pack: samples of one length, assembled from documents on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.commands import command
from data_prep.cleaning.removals import removals_fingerprint
from data_prep.ledger import Split
from data_prep.mapped import checked_path, map_array
from data_prep.packing.manifest import PACK_NAME, PIECE_FIELDS, PackManifest, pack_folder
from data_prep.packing.mixture import Mixture, Weight, mix
from data_prep.record import FileRecord, load_record

if TYPE_CHECKING:
    from data_prep.shards import Corpus

INDEX_DTYPE = np.dtype("<i8")


@dataclass(frozen=True)
class PackedSample:
    """`T` tokens of one or more pieces of documents; padding is a separate last piece."""

    ids: np.ndarray  # [T] int64
    position_ids: np.ndarray  # [T] int64, from 0 in every piece
    num_tokens: int  # real tokens; what follows is padding
    in_loss: np.ndarray  # [T] bool: not masked out of the loss; False in padding


class PackIndex:
    """Samples by number within a split. Pickles only the corpus path and the length."""

    def __init__(self, corpus: Corpus, *, seq_len: int) -> None:
        self.folder = pack_folder(corpus.folder, seq_len=seq_len)
        pack = f"data_prep pack {corpus.folder} --seq-len {seq_len}"
        how = f"`{command(pack)}`"
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: not packed for {seq_len} tokens; run {how} first")
        self.manifest = load_record(PackManifest, self.folder / PACK_NAME, made_by=how)
        if self.manifest.seq_len != seq_len:
            raise ValueError(
                f"{self.folder}: seq_len: expected {seq_len}, found {self.manifest.seq_len}"
            )
        again = f"`{command(f'{pack}{self.manifest.flags} --overwrite')}`"
        if self.manifest.corpus_fingerprint != corpus.fingerprint:
            raise ValueError(
                f"{self.folder}: made for another corpus: expected fingerprint "
                f"{corpus.fingerprint[:16]}, found {self.manifest.corpus_fingerprint[:16]}; "
                f"run {again}"
            )
        if self.manifest.removals_fingerprint != removals_fingerprint(corpus):
            raise ValueError(
                f"{self.folder}: packed before the lists in {corpus.folder / 'removals'} changed; "
                f"run {again}"
            )
        for file in self.files():
            checked_path(self.folder, file)
        self.seq_len = seq_len
        self.policy = self.manifest.policy
        self.fingerprint = self.manifest.fingerprint
        self.corpus = corpus
        # Padding is never a target and never attended to, so any id will do.
        self._pad_id = corpus.manifest.special_ids.pad or 0
        self._arrays: dict[Split, tuple[np.ndarray, np.ndarray]] = {}

    def __reduce__(self) -> tuple[object, tuple[Corpus, int]]:
        return _reopen, (self.corpus, self.seq_len)

    def files(self) -> list[FileRecord]:
        """All files next to the pack's manifest."""
        return [f for part in self.manifest.splits.values() for f in (part.pieces, part.samples)]

    def num_samples(self, split: Split = "train") -> int:
        return self.manifest.splits[split].num_samples

    def num_tokens(self, split: Split = "train") -> int:
        return self.manifest.splits[split].num_tokens

    def num_targets(self, split: Split = "train", domain: str | None = None) -> int:
        """Tokens in the loss: neither the first of a piece nor masked out; of one domain or all."""
        domains = self.manifest.splits[split].domains
        return sum(part.num_targets for part in domains if domain in (None, part.name))

    def domain_samples(self, split: Split = "train") -> dict[str, range]:
        """The numbers of each domain's samples, which are contiguous."""
        ranges, first = {}, 0
        for domain in self.manifest.splits[split].domains:
            ranges[domain.name] = range(first, first + domain.num_samples)
            first += domain.num_samples
        return ranges

    def mixture(
        self, weights: Mapping[str, Weight] | None = None, split: Split = "train"
    ) -> Mixture:
        """What an epoch takes of each domain; None means the weights given to `pack`."""
        chosen = self.manifest.weights if weights is None else weights
        return mix(self.manifest.splits[split].domains, chosen)

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
        """Assemble sample `i`: one small copy from the memory maps."""
        ids_T = np.full(self.seq_len, self._pad_id, dtype=np.int64)
        position_ids_T = np.empty(self.seq_len, dtype=np.int64)
        in_loss_T = np.zeros(self.seq_len, dtype=bool)
        filled = 0
        for document, start, length in self.pieces(i, split).tolist():
            if not 0 <= document < self.corpus.num_documents(split):
                raise self._damaged(i, split, found=f"document {document}")
            ids = self.corpus.document(document, split)
            if start < 0 or length < 1 or start + length > len(ids):
                found = f"tokens [{start}, {start + length}) of {len(ids)} of document {document}"
                raise self._damaged(i, split, found=found)
            if filled + length > self.seq_len:
                raise self._damaged(i, split, found=f"more than {self.seq_len} tokens")
            ids_T[filled : filled + length] = ids[start : start + length]
            position_ids_T[filled : filled + length] = np.arange(length)
            mask = self.corpus.loss_mask(document, split)
            in_loss_T[filled : filled + length] = (
                True if mask is None else mask[start : start + length]
            )
            filled += length
        position_ids_T[filled:] = np.arange(self.seq_len - filled)
        # an embedding would fail with an error that names neither id nor document
        if (largest := int(ids_T.max())) >= self.corpus.vocab_size:
            found = f"id {largest}, expected ids below {self.corpus.vocab_size}"
            raise self._damaged(i, split, found=found)
        return PackedSample(
            ids=ids_T, position_ids=position_ids_T, num_tokens=filled, in_loss=in_loss_T
        )

    def _damaged(self, i: int, split: Split, *, found: str) -> ValueError:
        return ValueError(f"{self.folder}: damaged sample {i} of {split}: {found}; pack again")


def _reopen(corpus: Corpus, seq_len: int) -> PackIndex:
    return PackIndex(corpus, seq_len=seq_len)
