"""Finds exact duplicates: documents with identical ids, of which the first is kept."""

from __future__ import annotations

import hashlib

import numpy as np

from common.progress import progress_bar
from data_prep.cleaning.documents import iter_documents, num_documents
from data_prep.shards import Corpus

_DIGEST_BYTES = 16


def find_exact_duplicates(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Documents to remove and, for each, the one that is kept, in precedence order.

    Holds a 16-byte hash per document, and twice that while sorting. Among 10^10 documents the
    probability that two different ones share a 128-bit hash is 10^-19.

    Returns:
        `[R]` int64 ascending, `[R]` int64.
    """
    total = num_documents(corpus)
    digests = np.empty((total, 2), dtype=np.uint64)
    with progress_bar(total, what="exact duplicates", unit=" documents") as bar:
        for number, ids in enumerate(iter_documents(corpus, start=0, end=total)):
            digest = hashlib.blake2b(ids.data, digest_size=_DIGEST_BYTES).digest()
            digests[number] = np.frombuffer(digest, dtype=np.uint64)
            bar.update(1)
    # Stable sort: among equal documents, the first in precedence order comes first.
    order = np.lexsort((np.arange(total), digests[:, 1], digests[:, 0]))
    in_order = digests[order]
    is_first = np.append(True, (in_order[1:] != in_order[:-1]).any(axis=1))[:total]
    first_of_group = np.flatnonzero(is_first)[np.cumsum(is_first) - 1] if total else order
    removed, kept = order[~is_first], order[first_of_group][~is_first]
    by_number = np.argsort(removed)
    return removed[by_number], kept[by_number]
