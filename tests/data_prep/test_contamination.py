"""Benchmark text in a corpus: words and n-grams of ids are those of the text, whatever it holds."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cleaning import contamination
from data_prep.cleaning.contamination import Against, Match, find_contamination
from data_prep.cleaning.documents import iter_documents, num_documents
from data_prep.cleaning.token_words import PiecesOfTokens, cut
from data_prep.cleaning.words import hash_words, iter_ngram_hashes, normalised, words_of
from data_prep.executor import open_pool
from data_prep.shards import Corpus, open_corpus

# Of letters that change when they are folded or joined, marks, other widths, gaps, an end of text.
CHARACTERS = "abE_1 \0\u00df\u0130\ufb01\uff21\u65e5\u0301\u0327-\n\U0001f600"
NUMBER = 8


def plain_words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


@given(text=st.text(st.sampled_from(CHARACTERS)))
@settings(max_examples=200, deadline=None)
def test_words_have_equal_hashes_where_they_are_equal(text: str) -> None:
    words, (hashes, _) = words_of(normalised(text)), hash_words(cut([text])[0])
    assert words == plain_words(text)
    alone = [hash_words(cut([word])[0])[0].item() for word in words]  # wherever it is in a text
    assert hashes.tolist() == alone
    assert len(set(alone)) == len(set(words))


@given(
    spelling=st.lists(
        st.one_of(
            st.binary(max_size=3),
            st.text(st.sampled_from(CHARACTERS), max_size=4).map(str.encode),
            st.text(st.sampled_from("ab ,"), max_size=6).map(str.encode),
        ),
        min_size=1,
        max_size=12,
    ),
    documents=st.lists(st.lists(st.integers(0, 13), max_size=12), min_size=1, max_size=5),
)
@settings(max_examples=250, deadline=None)
def test_the_words_of_ids_are_those_of_the_text(
    spelling: list[bytes], documents: list[list[int]]
) -> None:
    """Tokens of any bytes: parts of characters, several words, nothing at all."""
    all_spelt = [*spelling, *[b""] * (14 - len(spelling))]

    def decode(ids: np.ndarray) -> str:
        return b"".join(all_spelt[i] for i in ids).decode("utf-8", "replace")

    ids = np.array([i for document in documents for i in document], dtype=np.uint16)
    offsets = np.cumsum([0, *map(len, documents)])
    for known in (np.array(spelling, dtype=object), None):
        tokenizer = SimpleNamespace(spelling=lambda known=known: known, vocab_size=14)
        tokenizer.decode = decode
        pieces, first_pieces = PiecesOfTokens(tokenizer).of_documents(ids, offsets)
        hashes, pieces_of_words = hash_words(pieces)
        bounds = np.searchsorted(pieces_of_words, first_pieces)
        for document, found in zip(documents, np.split(hashes, bounds[1:]), strict=True):
            words = plain_words(decode(document))
            assert found.tolist() == [hash_words(cut([word])[0])[0].item() for word in words]


def test_ngrams_have_equal_hashes_where_they_are_equal() -> None:
    words = np.random.default_rng(0).integers(0, 1 << 63, size=4, dtype=np.uint64)
    hashes = words[np.random.default_rng(1).integers(0, 4, size=30)]
    lengths = (1, 3, 30, 31)
    for length, found in zip(lengths, iter_ngram_hashes(hashes, lengths=lengths), strict=True):
        grams = [tuple(hashes[at : at + length]) for at in range(30 - length + 1)]
        assert len(found) == len(grams)
        assert len(set(zip(grams, found.tolist(), strict=True))) == len(set(grams))
        assert len(set(found.tolist())) == len(set(grams))


@pytest.fixture(params=["bpe_folder", "unigram_folder"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path, write_jsonl, build_corpus) -> Corpus:
    """Documents of few different words, in several shards and both splits."""
    rng = random.Random(request.param)
    texts = [mixed(rng, rng.randint(1, 80)) for _ in range(150)]
    source = write_jsonl(tmp_path / "docs.jsonl", texts)
    folder = request.getfixturevalue(request.param)
    return open_corpus(build_corpus(source, tokenizer=str(folder), val_frac=0.2, shard_mib=0.01))


def mixed(rng: random.Random, num_words: int) -> str:
    """Words spelt in many ways."""
    words = ("a", "A", "caf\u00e9", "cafe\u0301", "CAF\u00c9", "\ufb01ne", "fine", "\uff21")
    gaps = (" ", ", ", "\n", "\u2014", " \0 ", "\u3000", "\u0301 ", " \U0001f600")
    return "".join(rng.choice(words) + rng.choice(gaps) for _ in range(num_words))


def plain_matches(texts: list[str], benchmark: list[str], *, place: str) -> list[Match]:
    """By looking for each n-gram of each benchmark text, as words."""
    source: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(benchmark):
        words = plain_words(text)
        length = min(len(words), NUMBER + 2)
        for at in range(len(words) - length + 1):
            source.setdefault(tuple(words[at : at + length]), number)
    matches = []
    for number, text in enumerate(texts):
        words, found = plain_words(text), []
        for length in sorted(set(map(len, source))):
            grams = (tuple(words[at : at + length]) for at in range(len(words) - length + 1))
            found += [gram for gram in grams if gram in source]
        if found:
            first = place.format(source[found[0]] + 1)
            matches.append(Match(number, len(found), first, " ".join(found[0])))
    return matches


def test_matches_are_those_that_a_plain_search_finds(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    benchmark = [mixed(rng, rng.randint(NUMBER, 20)) for _ in range(120)]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in benchmark))
    texts = [
        corpus.tokenizer.decode(ids)
        for ids in iter_documents(corpus, start=0, end=num_documents(corpus))
    ]
    expected = plain_matches(texts, benchmark, place=f"{path}:{{}}")
    monkeypatch.setattr(contamination, "_TASK_TOKENS", 1000)
    monkeypatch.setattr(contamination, "_TOKENS_AT_ONCE", 100)
    against = Against((str(path),), ("text",), NUMBER + 2)
    with open_pool(1) as pool:
        found = find_contamination(corpus, against, start=0, end=len(texts), pool=pool)
        part = find_contamination(corpus, against, start=7, end=120, pool=pool)
    assert found == expected
    assert part == [match for match in expected if 7 <= match.number < 120]
    assert 10 < len(expected) < 140
