"""Finds benchmark text in a corpus: documents that share word n-grams with given files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.progress import progress_bar
from data_prep.cleaning.documents import iter_spans
from data_prep.cleaning.token_words import PiecesOfTokens, cut
from data_prep.cleaning.words import hash_words, iter_ngram_hashes, normalised, words_of
from data_prep.executor import WorkerPool
from data_prep.reading.documents import BadInput, Document
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.formats import cut_files, name_place, read_part
from data_prep.reading.parts import InputFile
from data_prep.reading.sources import DomainInput, find_domains
from data_prep.shards import Corpus, open_corpus

_TASK_TOKENS = 1 << 20
# Their arrays stay near the processor.
_TOKENS_AT_ONCE = 1 << 16
_MOST_BEGIN_BITS = 22
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
    may_be: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=bool))
    """`[2^bits]` whether any hash begins with these bits: most n-grams need no search."""
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
        domains = _find(against.paths, fields=fields)
        sources = [source for domain in domains for source in domain.sources]
        found.num_files = sum(source.num_files for source in sources)
        found.files_left_out = sum((Counter(s.files_left_out) for s in sources), Counter())
        for place, text in _texts(domains, key=key, found=found):
            words = words_of(normalised(text))
            if len(words) < MIN_WORDS:
                found.num_too_short += 1
                continue
            hashes_of_words, _ = hash_words(cut([text])[0])
            of_text = next(iter_ngram_hashes(hashes_of_words, lengths=[min(n, len(words))]))
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
    # One in 64 of a small benchmark's is taken, and the table stays near the processor.
    bits = min(_MOST_BEGIN_BITS, len(found.hashes).bit_length() + 6)
    found.may_be = np.zeros(1 << bits, dtype=bool)
    found.may_be[_begins(found.hashes, found.may_be)] = True
    return found


def _find(paths: Sequence[str], *, fields: Fields) -> list[DomainInput]:
    try:
        return find_domains(paths, globs=Globs(), fields_of={}, default=fields)
    except ValueError as error:  # most begin with the option of build
        raise ValueError(re.sub(r"^--input\b", "--against", str(error))) from None


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
                        raise ValueError(f"--against: {_fault_in(part.file, item)}")
                    first_bad = first_bad or _fault_in(part.file, item)
                    found.num_without_text += 1
                elif isinstance(item, Document) and isinstance(item.content, str):
                    num_texts += 1
                    yield name_place(part.file, item.place), item.content
    if not num_texts:
        raise ValueError(
            f"--against: no text under {key!r}: {first_bad or 'no record'}; name the field with "
            "--text-key"
        )


def _fault_in(file: InputFile, fault: BadInput) -> str:
    """Without what only options of build can do about it."""
    return fault.sentence(name_place(file, fault.place))


def find_contamination(
    corpus: Corpus, against: Against, *, start: int, end: int, pool: WorkerPool
) -> list[Match]:
    """Find documents that share a word n-gram, from `start` to `end` in precedence order."""
    spans = iter_spans(corpus, start=start, end=end, num_tokens=_TASK_TOKENS)
    tasks = (
        _Task(corpus.folder, first, first + rows.stop - rows.start, against)
        for first, _, rows in spans
    )
    matches = []
    with (
        progress_bar(end - start, what="compare", unit=" documents") as bar,
        closing(pool.map_in_order(match_task, tasks)) as results,
    ):
        for num_documents, found in results:
            matches += found
            bar.update(num_documents)
    return matches


def match_task(task: _Task) -> tuple[int, list[Match]]:
    """How many documents were searched, and those that match."""
    corpus, pieces_of_tokens = _open(task.folder)
    benchmark = read_benchmark(task.against)
    matches = []
    spans = iter_spans(corpus, start=task.start, end=task.end, num_tokens=_TOKENS_AT_ONCE)
    for first, shard, rows in spans:
        bounds = shard.offsets[rows.start : rows.stop + 1]
        ids, offsets = shard.tokens[bounds[0] : bounds[-1]], bounds - bounds[0]
        pieces, first_pieces = pieces_of_tokens.of_documents(ids, offsets)
        hashes, pieces_of_words = hash_words(pieces)
        hits = _hits(hashes, benchmark=benchmark)
        first_words = np.searchsorted(pieces_of_words, first_pieces)
        for row, own in _by_document(hits, first_words=first_words):
            text = corpus.tokenizer.decode(ids[offsets[row] : offsets[row + 1]])
            if found := _match(normalised(text), hits=own, benchmark=benchmark):
                matches.append(Match(first + row, *found))
    return task.end - task.start, matches


@lru_cache(maxsize=1)
def _open(folder: Path) -> tuple[Corpus, PiecesOfTokens]:
    corpus = open_corpus(folder)
    return corpus, PiecesOfTokens(corpus.tokenizer)


def _hits(hashes: np.ndarray, *, benchmark: Benchmark) -> np.ndarray:
    """N-grams of words `[W]` whose hash the benchmark has, by length and first word.

    Returns:
        `[hits, 3]` int64: the first word, the length, and the index in `benchmark.hashes`. Some
        reach from one document into the next.
    """
    found = []
    of_lengths = iter_ngram_hashes(hashes, lengths=benchmark.lengths)
    for length, of_ngrams in zip(benchmark.lengths, of_lengths, strict=True):
        starts = np.flatnonzero(benchmark.may_be[_begins(of_ngrams, benchmark.may_be)])
        at = np.searchsorted(benchmark.hashes, of_ngrams[starts])
        at = np.minimum(at, len(benchmark.hashes) - 1)
        is_found = benchmark.hashes[at] == of_ngrams[starts]
        found.append(np.stack([starts, np.full_like(starts, length), at], axis=1)[is_found])
    return np.concatenate(found)


def _begins(hashes: np.ndarray, may_be: np.ndarray) -> np.ndarray:
    """The first bits of hashes, as indices of the table."""
    return hashes >> np.uint64(65 - len(may_be).bit_length())


def _by_document(hits: np.ndarray, *, first_words: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The hits of each document that has any, their words counted from its first."""
    documents = np.searchsorted(first_words, hits[:, 0], side="right") - 1
    order = np.argsort(documents, kind="stable")
    rows, begins = np.unique(documents[order], return_index=True)
    for row, own in zip(rows.tolist(), np.split(hits[order], begins[1:]), strict=False):
        yield row, own - [first_words[row], 0, 0]


def _match(text: str, *, hits: np.ndarray, benchmark: Benchmark) -> tuple[int, str, str] | None:
    """The number of shared n-grams of a normalised text, the source of the first, its words."""
    num_matches, first = 0, None
    words = words_of(text)
    for start, length, place in hits.tolist():
        text_number, word = benchmark.owners[place].tolist()
        same = benchmark.words[text_number][word : word + length]
        # Hashes may collide, so compare the words.
        if same == words[start : start + length]:
            num_matches += 1
            first = first or (benchmark.places[text_number], " ".join(same))
    return (num_matches, *first) if first else None
