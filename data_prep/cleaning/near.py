"""Finds near duplicates by MinHash: documents that share most of their token n-grams.

Broder: On the resemblance and containment of documents, 1997; banding as in Leskovec, Rajaraman,
Ullman: Mining of Massive Datasets, chapter 3. The library `rensa` computes signatures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import rensa

from common.progress import progress_bar
from data_prep.cleaning.documents import iter_documents, num_documents
from data_prep.executor import WorkerPool
from data_prep.shards import Corpus, open_corpus

_SEED = 1
_TASK_DOCUMENTS = 4096
# However long documents are, these 2 MiB stay near the processor.
_HASHES_AT_ONCE = 1 << 18
_RECALL = 0.995
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class NearDuplicates(NamedTuple):
    """Document numbers in precedence order."""

    removed: np.ndarray
    """`[R]` int64, ascending."""
    kept: np.ndarray
    """`[R]` int64: the first document of each one's group."""
    similarity: np.ndarray
    """`[R]` Jaccard similarity of the two, estimated from their signatures."""


class _Task(NamedTuple):
    folder: Path
    start: int
    end: int
    ngram: int
    num_perm: int


def find_near_duplicates(
    corpus: Corpus, *, threshold: float, ngram: int, num_perm: int, pool: WorkerPool
) -> NearDuplicates:
    """Group similar documents; all but the first of each group are to be removed.

    Documents that share a signature band fall into one bucket. Each is compared, by its full
    signature, with the bucket's first document and with its predecessor, and grouped if the
    estimate is at least `threshold`. Two documents of a group may be similar only to a third.

    Signatures are kept in a scratch file (4 bytes per permutation and document); memory holds
    about 50 bytes per document.

    Args:
        threshold: Jaccard similarity of the sets of n-grams, in (0, 1].
        ngram: tokens per n-gram; a shorter document is one n-gram.
        num_perm: signature length; the estimate's error is about 1 / sqrt(num_perm).
    """
    total = num_documents(corpus)
    with tempfile.TemporaryFile(dir=corpus.folder) as scratch:
        signatures = _sketch(
            corpus, total=total, ngram=ngram, num_perm=num_perm, pool=pool, scratch=scratch
        )
        groups = _Groups(total)
        rows = rows_of_band(threshold, num_perm=num_perm)
        num_bands = num_perm // rows
        with progress_bar(num_bands, what="compare", unit=" bands") as bar:
            for band in range(num_bands):
                for a, b in _pairs(signatures[:, band * rows : (band + 1) * rows]):
                    if groups.root(a) != groups.root(b) and (
                        _similarity(signatures, a, b) >= threshold
                    ):
                        groups.join(a, b)
                bar.update(1)
        roots = groups.roots()
        removed = np.flatnonzero(roots != np.arange(total))
        kept = roots[removed]
        similarity = np.array(
            [
                _similarity(signatures, a, b)
                for a, b in zip(removed.tolist(), kept.tolist(), strict=True)
            ]
        )
    return NearDuplicates(removed, kept, similarity)


def rows_of_band(threshold: float, *, num_perm: int) -> int:
    """The longest band for which a pair at the threshold shares a band with probability 0.995.

    Longer bands put fewer unrelated documents into one bucket. A pair of similarity t shares at
    least one of b bands of r rows with probability 1 - (1 - t^r)^b.
    """
    fitting = [
        rows
        for rows in range(1, num_perm + 1)
        if 1 - (1 - threshold**rows) ** (num_perm // rows) >= _RECALL
    ]
    return max(fitting, default=1)


def _sketch(
    corpus: Corpus,
    *,
    total: int,
    ngram: int,
    num_perm: int,
    pool: WorkerPool,
    scratch: IO[bytes],
) -> np.ndarray:
    """Signatures of all documents, `[total, num_perm]` uint32 in the scratch file."""
    scratch.truncate(total * num_perm * 4)
    signatures = np.memmap(scratch, dtype=np.uint32, shape=(total, num_perm))
    tasks = (
        _Task(corpus.folder, start, min(start + _TASK_DOCUMENTS, total), ngram, num_perm)
        for start in range(0, total, _TASK_DOCUMENTS)
    )
    with (
        progress_bar(total, what="sketch", unit=" documents") as bar,
        closing(pool.map_in_order(sketch_task, tasks)) as results,
    ):
        first = 0
        for rows in results:
            signatures[first : first + len(rows)] = rows
            first += len(rows)
            bar.update(len(rows))
    return np.asarray(signatures)  # each row of a memmap would be a memmap


def sketch_task(task: _Task) -> np.ndarray:
    """Signatures of some documents, `[n, num_perm]` uint32."""
    documents = iter_documents(_corpus(task.folder), start=task.start, end=task.end)
    rows: list[np.ndarray] = []
    hashes: list[np.ndarray] = []
    num_hashes = 0
    for ids in documents:
        hashes.append(hash_ngrams(ids, n=task.ngram))
        num_hashes += len(hashes[-1])
        if num_hashes >= _HASHES_AT_ONCE:
            rows.append(_signatures(hashes, num_perm=task.num_perm))
            hashes, num_hashes = [], 0
    if hashes:
        rows.append(_signatures(hashes, num_perm=task.num_perm))
    return np.concatenate(rows)


def _signatures(hashes: Sequence[np.ndarray], *, num_perm: int) -> np.ndarray:
    """Of documents given by the hashes of their n-grams, `[n, num_perm]` uint32."""
    bounds = np.cumsum([0, *map(len, hashes)]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(hashes), bounds, num_perm, _SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32)


@lru_cache(maxsize=1)
def _corpus(folder: Path) -> Corpus:
    return open_corpus(folder)


def hash_ngrams(ids: np.ndarray, *, n: int) -> np.ndarray:
    """A 64-bit hash of every n-gram, `[max(len - n + 1, 1)]` uint64; equal if n-grams are.

    Fewer ids than n are one n-gram.
    """
    if not len(ids):
        return np.zeros(1, dtype=np.uint64)
    ids = ids.astype(np.uint64)
    ids += np.uint64(1)
    hashes, high = np.zeros((2, len(ids)), dtype=np.uint64)
    for i in range(min(n, len(ids))):  # uint64 wraps around; in place, twice as fast
        hashes, high = hashes[: len(ids) - i], high[: len(ids) - i]
        hashes ^= ids[i:]
        hashes *= _MULTIPLIER
        np.right_shift(hashes, np.uint64(29), out=high)
        hashes ^= high
    return hashes


def _pairs(band: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pair each document of a bucket with the bucket's first and with its predecessor."""
    hashes = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        hashes = (hashes ^ column) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    order = np.argsort(hashes, kind="stable")
    in_order = hashes[order]
    is_first = np.append(True, in_order[1:] != in_order[:-1])[: len(order)]
    members = np.flatnonzero(~is_first)
    if not len(members):
        return
    firsts = np.flatnonzero(is_first)[np.cumsum(is_first) - 1][members]
    yield from zip(order[firsts].tolist(), order[members].tolist(), strict=True)
    others = members[members - 1 != firsts]
    yield from zip(order[others - 1].tolist(), order[others].tolist(), strict=True)


def _similarity(signatures: np.ndarray, a: int, b: int) -> float:
    return float(np.mean(signatures[a] == signatures[b]))


class _Groups:
    """Disjoint sets of documents, each identified by its first document."""

    def __init__(self, size: int) -> None:
        self._parents = np.arange(size)

    def root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = int(parents[number])
        return number

    def join(self, a: int, b: int) -> None:
        first, second = sorted((self.root(a), self.root(b)))
        self._parents[second] = first

    def roots(self) -> np.ndarray:
        while not np.array_equal(parents := self._parents[self._parents], self._parents):
            self._parents = parents
        return self._parents
