"""Checks of a pack: every token of the corpus in exactly one sample, no sample too long."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.checksums import check_checksums
from data_prep.cleaning.removals import removed_documents
from data_prep.ledger import SPLITS, Split
from data_prep.packing.index import PackIndex
from data_prep.record import must_agree
from data_prep.shards import Corpus


def check_pack(corpus: Corpus, folder: Path, *, deep: bool) -> str:
    """Return a summary, or raise a ValueError that names what is wrong."""
    number = folder.name.removeprefix("pack-")
    if not number.isdecimal():
        raise ValueError(f"{folder}: expected pack-<tokens>, found {folder.name}")
    index = corpus.open_pack(int(number))
    if deep:
        check_checksums(folder, files=index.files())
    for split in SPLITS:
        _check_samples(index, split=split)
        removed = removed_documents(corpus, split)
        _check_cover(index, split=split, lengths=corpus.document_lengths(split), removed=removed)
        _check_domains(corpus, index, split=split, removed=removed)
    counts = f"{index.num_samples('train'):,} + {index.num_samples('val'):,} samples"
    return f"{counts}, all tokens once"


def _check_domains(corpus: Corpus, index: PackIndex, *, split: Split, removed: np.ndarray) -> None:
    """Check that a domain's samples hold only its documents, and that its counts are right."""
    pieces, samples = index.arrays(split)
    lengths = corpus.document_lengths(split)
    first = 0
    for domain in index.manifest.splits[split].domains:
        what = f"{index.folder.name}: {split} {domain.name}"
        documents = corpus.domain_documents(split)[domain.name]
        own = pieces[samples[first] : samples[first + domain.num_samples]]
        if np.any((own[:, 0] < documents.start) | (own[:, 0] >= documents.stop)):
            raise ValueError(f"{what}: its samples hold documents of another domain")
        gone = removed[(removed >= documents.start) & (removed < documents.stop)]
        found = {
            "documents": len(documents) - len(gone),
            "documents_removed": len(gone),
            "tokens": int(own[:, 2].sum()),
            "tokens_removed": int(lengths[gone].sum()),
            "pieces": len(own),
        }
        for name, number in found.items():
            must_agree(f"{what} {name}", expected=getattr(domain, f"num_{name}"), found=number)
        first += domain.num_samples


def _check_samples(index: PackIndex, *, split: Split) -> None:
    pieces, samples = index.arrays(split)
    name = f"{index.folder.name}/{split}.samples"
    if samples[0] != 0 or samples[-1] != len(pieces):
        raise ValueError(
            f"{name}: expected bounds 0 to {len(pieces)}, found {samples[0]} to {samples[-1]}"
        )
    wrong = np.flatnonzero(np.diff(samples) < 1)
    if len(wrong):
        raise ValueError(f"{name}: sample {wrong[0]}: expected at least one piece, found none")
    lengths = pieces[:, 2]
    if len(lengths) and (lengths.min() < 1 or lengths.max() > index.seq_len):
        raise ValueError(
            f"{index.folder.name}/{split}.pieces: expected lengths from 1 to {index.seq_len}, "
            f"found {lengths.min()} to {lengths.max()}"
        )
    num_tokens = np.diff(np.concatenate([[0], np.cumsum(lengths)])[samples])
    wrong = np.flatnonzero(num_tokens > index.seq_len)
    if len(wrong):
        raise ValueError(
            f"{name}: sample {wrong[0]}: expected at most {index.seq_len} tokens, "
            f"found {num_tokens[wrong[0]]}"
        )


def _check_cover(
    index: PackIndex, *, split: Split, lengths: np.ndarray, removed: np.ndarray
) -> None:
    """Check that in (document, start) order the pieces follow each other without a gap.

    Documents of 5 and 2 tokens: (0, 0, 3), (0, 3, 2), (1, 0, 2) have the expected starts 0, 3, 0.
    """
    pieces = index.arrays(split)[0]
    name = f"{index.folder.name}/{split}.pieces"
    found = np.unique(pieces[:, 0])
    kept = np.delete(np.arange(len(lengths)), removed)
    if not np.array_equal(found, kept):
        raise ValueError(
            f"{name}: expected each of {len(kept):,} documents, found {len(found):,}, "
            f"numbers {found[:1]} to {found[-1:]}"
        )
    document, start, length = pieces[np.lexsort((pieces[:, 1], pieces[:, 0]))].T
    is_first = np.append(True, document[1:] != document[:-1])[: len(document)]
    expected = np.where(is_first, 0, np.append(0, (start + length)[:-1])[: len(document)])
    wrong = np.flatnonzero(start != expected)
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"{name}: document {document[at]}: expected a piece from token {expected[at]}, "
            f"found one from {start[at]}"
        )
    ends = (start + length)[np.append(is_first[1:], True)[: len(document)]]
    wrong = np.flatnonzero(ends != lengths[kept])
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"{name}: document {kept[at]}: expected pieces up to token {lengths[kept[at]]}, "
            f"found {ends[at]}"
        )
