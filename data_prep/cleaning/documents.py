"""Documents of both splits in one precedence order: held-out first, then by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from data_prep.ledger import Split
from data_prep.shards import Corpus, MappedShard

# Held-out documents are kept: a copy in train would be memorised.
PRECEDENCE: tuple[Split, ...] = ("val", "train")


def num_documents(corpus: Corpus) -> int:
    return sum(corpus.num_documents(split) for split in PRECEDENCE)


def iter_documents(corpus: Corpus, *, start: int, end: int) -> Iterator[np.ndarray]:
    """The ids of documents `start` to `end` in precedence order."""
    first = 0
    for split in PRECEDENCE:
        for opened in corpus.open_shards(split):
            last = first + opened.shard.num_documents
            rows = slice(max(start - first, 0), max(min(end, last) - first + 1, 0))
            for begins, stops in pairwise(opened.offsets[rows].tolist()):
                yield opened.tokens[begins:stops]
            first = last


def iter_spans(
    corpus: Corpus, *, start: int, end: int, num_tokens: int
) -> Iterator[tuple[int, MappedShard, slice]]:
    """Consecutive documents of one shard, from `start` to `end` in precedence order.

    Yields:
        The number of the first, the shard, and the rows of the documents in it: with at least
        `num_tokens`, unless the shard or `end` comes before.
    """
    first = 0
    for split in PRECEDENCE:
        for opened in corpus.open_shards(split):
            num_documents = opened.shard.num_documents
            row, last = max(start - first, 0), min(end - first, num_documents)
            while row < last:
                enough = int(opened.offsets[row]) + num_tokens
                after = min(max(int(np.searchsorted(opened.offsets, enough)), row + 1), last)
                yield first + row, opened, slice(row, after)
                row = after
            first += num_documents


def place(corpus: Corpus, number: int) -> tuple[Split, int]:
    """Convert a number in precedence order to a split and the number within it."""
    num_held_out = corpus.num_documents("val")
    return ("val", number) if number < num_held_out else ("train", number - num_held_out)


def by_split(corpus: Corpus, numbers: np.ndarray) -> dict[Split, np.ndarray]:
    """Convert ascending numbers in precedence order to numbers within each split."""
    num_held_out = corpus.num_documents("val")
    return {
        "val": numbers[numbers < num_held_out],
        "train": numbers[numbers >= num_held_out] - num_held_out,
    }


def reasons_by_split(
    corpus: Corpus, numbers: np.ndarray, reason: Callable[[int], Mapping[str, Any]]
) -> dict[Split, Iterator[dict[str, Any]]]:
    """The reasons for each split's removals, generated as they are written."""
    parts = np.split(numbers, [np.searchsorted(numbers, corpus.num_documents("val"))])
    return {
        split: (dict(reason(number)) for number in part.tolist())
        for split, part in zip(PRECEDENCE, parts, strict=True)
    }


def name_of(corpus: Corpus, number: int) -> dict[str, Any]:
    """How a report names the document that is kept."""
    split, own = place(corpus, number)
    return {"split": split, "document": own, "origin": str(corpus.origin(own, split))}
