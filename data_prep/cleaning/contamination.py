"""Finds benchmark text in a corpus: documents that share word n-grams with given files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.progress import progress_bar
from data_prep.cleaning.documents import iter_documents
from data_prep.cleaning.near import hash_ngrams, iter_ngram_hashes
from data_prep.cleaning.words import hash_words, normalised, words_of
from data_prep.executor import WorkerPool
from data_prep.reading.documents import BadInput, Document
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.formats import cut_files, describe_fault, name_place, read_part
from data_prep.reading.sources import DomainInput, find_domains
from data_prep.shards import Corpus, open_corpus
from data_prep.tokenizing.tokenizer import Tokenizer, load_tokenizer

_TASK_DOCUMENTS = 256
_BEGIN_BITS = 22
_BEGIN_SHIFT = np.uint64(64 - _BEGIN_BITS)
# Shorter texts are too common to be evidence: "yes", "the answer is 4".
MIN_WORDS = 8
# Of several fields one may be missing from a record; anything else is a benchmark half read.
_WITHOUT_TEXT = ("missing key", "missing column", "not text")


@dataclass
class Benchmark:
    """Words of the given texts, and a sorted table of their n-gram hashes.

    Held in memory: about 30 times the size of the benchmark's text.
    """

    places: list[str] = field(default_factory=list)
    words: list[list[str]] = field(default_factory=list)
    num_too_short: int = 0
    num_without_text: int = 0
    """Records in which a field is missing or is not text."""
    num_files: int = 0
    files_left_out: Counter[str] = field(default_factory=Counter)
    """Files of folders that are not read, by reason."""
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    owners: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    """Indices of each n-gram's text and first word."""
    may_be: np.ndarray = field(default_factory=lambda: np.zeros(1 << _BEGIN_BITS, dtype=bool))
    """Whether any hash begins with these bits: most n-grams of a corpus need no search."""
    lengths: tuple[int, ...] = ()
    """N-gram lengths in words: n, and the lengths of shorter texts."""

    def counts(self) -> dict[str, object]:
        """What was read of the files, and what was not."""
        return {
            "files": self.num_files,
            "files_left_out": dict(self.files_left_out),
            "texts": len(self.words),
            "texts_too_short": self.num_too_short,
            "records_without_text": self.num_without_text,
        }


class Match(NamedTuple):
    """A document of the corpus that holds benchmark text."""

    number: int
    """Document number in precedence order."""
    num_matches: int
    place: str
    """File and row of the benchmark text of the first match."""
    text: str
    """The shared words."""


class Against(NamedTuple):
    """What to read for a `Benchmark`; small enough to send with every task."""

    paths: tuple[str, ...]
    keys: tuple[str, ...]
    """Record fields; one may be missing from some files but not from all."""
    n: int


class _Task(NamedTuple):
    folder: Path
    start: int
    end: int
    against: Against


@lru_cache(maxsize=1)
def read_benchmark(against: Against) -> Benchmark:
    """Read all texts of the given files.

    Raises:
        ValueError: for a record that cannot be read, or when no text is long enough.
    """
    keys, n = against.keys, against.n
    found = Benchmark()
    owners, hashes = [], []
    for key in keys:
        fields = Fields(text=key)
        domains = find_domains(against.paths, globs=Globs(), fields_of={}, default=fields)
        sources = [source for domain in domains for source in domain.sources]
        found.num_files = sum(source.num_files for source in sources)
        found.files_left_out = sum((Counter(s.files_left_out) for s in sources), Counter())
        for place, text in _texts(domains, key=key, found=found):
            text = normalised(text)
            words = words_of(text)
            if len(words) < MIN_WORDS:
                found.num_too_short += 1
                continue
            of_text = hash_ngrams(hash_words(text), n=n)
            owner = np.full(len(of_text), len(found.words))
            owners.append(np.stack([owner, np.arange(len(of_text))]))
            hashes.append(of_text)
            found.places.append(place)
            found.words.append(words)
    if not hashes:
        raise ValueError(
            f"--against: no text of {MIN_WORDS} or more words under {' or '.join(keys)}; "
            "name the field with --text-key"
        )
    found.hashes = np.concatenate(hashes)
    order = np.argsort(found.hashes, kind="stable")
    found.hashes = found.hashes[order]
    found.owners = np.concatenate(owners, axis=1).T[order]
    found.lengths = tuple(sorted({min(len(words), n) for words in found.words}))
    found.may_be[found.hashes >> _BEGIN_SHIFT] = True
    return found


def _texts(
    domains: Sequence[DomainInput], *, key: str, found: Benchmark
) -> Iterator[tuple[str, str]]:
    """Place and text of every record with the field; the others are counted in `found`."""
    num_texts, first_bad = 0, ""
    for domain in domains:
        for part in cut_files(domain.files, fields=domain.fields):
            for item in read_part(part, fields=domain.fields):
                if isinstance(item, BadInput):
                    if not item.reason.startswith(_WITHOUT_TEXT):
                        raise ValueError(f"--against: {describe_fault(part.file, item)}")
                    first_bad = first_bad or describe_fault(part.file, item)
                    found.num_without_text += 1
                elif isinstance(item, Document) and isinstance(item.content, str):
                    num_texts += 1
                    yield name_place(part.file, item.place), item.content
    if not num_texts:
        raise ValueError(f"--against: no text under {key!r}: {first_bad or 'no record'}")


def find_contamination(
    corpus: Corpus, against: Against, *, start: int, end: int, pool: WorkerPool
) -> list[Match]:
    """Find documents that share a word n-gram, from `start` to `end` in precedence order."""
    tasks = (
        _Task(corpus.folder, first, min(first + _TASK_DOCUMENTS, end), against)
        for first in range(start, end, _TASK_DOCUMENTS)
    )
    matches = []
    with (
        progress_bar(end - start, what="compare", unit=" documents") as bar,
        closing(pool.map_in_order(match_task, tasks)) as results,
    ):
        for number, found in enumerate(results):
            matches += found
            left = end - start - number * _TASK_DOCUMENTS
            bar.update(min(_TASK_DOCUMENTS, left))
    return matches


def match_task(task: _Task) -> list[Match]:
    corpus, tokenizer = _open(task.folder)
    benchmark = read_benchmark(task.against)
    matches = []
    documents = iter_documents(corpus, start=task.start, end=task.end)
    for number, ids in enumerate(documents, start=task.start):
        found = _match(normalised(tokenizer.decode(ids)), benchmark=benchmark)
        if found:
            num_matches, place, text = found
            matches.append(Match(number, num_matches, place, text))
    return matches


@lru_cache(maxsize=1)
def _open(folder: Path) -> tuple[Corpus, Tokenizer]:
    corpus = open_corpus(folder)
    return corpus, load_tokenizer(corpus.tokenizer_dir, fast=False)


def _match(text_in_corpus: str, *, benchmark: Benchmark) -> tuple[int, str, str] | None:
    """The number of shared n-grams, the source of the first, and its words."""
    num_matches, first = 0, None
    of_words = hash_words(text_in_corpus)
    words: list[str] = []
    all_hashes = iter_ngram_hashes(of_words, lengths=benchmark.lengths)
    for length, hashes in zip(benchmark.lengths, all_hashes, strict=False):
        starts = np.flatnonzero(benchmark.may_be[hashes >> _BEGIN_SHIFT])
        at = np.searchsorted(benchmark.hashes, hashes[starts])
        at = np.minimum(at, len(benchmark.hashes) - 1)
        is_found = benchmark.hashes[at] == hashes[starts]
        for start, place in zip(starts[is_found].tolist(), at[is_found].tolist(), strict=True):
            words = words or words_of(text_in_corpus)
            text, word = benchmark.owners[place].tolist()
            same = benchmark.words[text][word : word + length]
            # Hashes may collide, so compare the words.
            if same == words[start : start + length]:
                num_matches += 1
                first = first or (benchmark.places[text], " ".join(same))
    return (num_matches, *first) if first else None
