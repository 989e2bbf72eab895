"""Counts the tokens in the loss without holding a number per token in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_prep.shards import MappedShard

_BLOCK_TOKENS = 1 << 24


def count_targets(pieces: np.ndarray, *, shards: Sequence[MappedShard]) -> int:
    """Tokens of the pieces that have a predecessor in their piece and are not masked out.

    Args:
        pieces: `[P, 3]` int64: document (numbered over the shards), start, length.
        shards: of one domain and split, in order.
    """
    if all(opened.mask is None for opened in shards):
        return int(pieces[:, 2].sum()) - len(pieces)
    pieces = pieces[np.lexsort((pieces[:, 1], pieces[:, 0]))]
    num_targets, first_document = 0, 0
    for opened in shards:
        last_document = first_document + opened.shard.num_documents
        bounds = np.searchsorted(pieces[:, 0], [first_document, last_document])
        own = pieces[slice(*bounds)]
        if opened.mask is None:
            num_targets += int(own[:, 2].sum()) - len(own)
        else:
            starts = opened.offsets[own[:, 0] - first_document] + own[:, 1]
            ends = starts + own[:, 2]
            ones = _ones_before(opened.mask, np.stack([starts + 1, ends], axis=1).reshape(-1))
            num_targets += int(np.diff(ones.reshape(-1, 2), axis=1).sum())
        first_document = last_document
    return num_targets


def _ones_before(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Number of ones in `mask` before each place; places must be non-decreasing."""
    found = np.empty(len(places), dtype=np.int64)
    num_ones = 0
    for start in range(0, len(mask) + 1, _BLOCK_TOKENS):
        block = mask[start : start + _BLOCK_TOKENS]
        sums = np.concatenate([[0], np.cumsum(block, dtype=np.int64)])
        here = slice(*np.searchsorted(places, [start, start + _BLOCK_TOKENS]))
        found[here] = num_ones + sums[places[here] - start]
        num_ones += int(sums[-1])
    return found
