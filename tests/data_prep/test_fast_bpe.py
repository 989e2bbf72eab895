"""gigatoken in place of the Hugging Face library: only where both give the same ids."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.tokenizing import gigatoken_path, tokenizer
from data_prep.tokenizing.gigatoken_path import (
    GigatokenPath,
    NotTheSame,
    byte_of_character,
)
from data_prep.tokenizing.long_text import KNOWN_PATTERNS
from data_prep.tokenizing.split_check import probe_settings
from data_prep.tokenizing.tokenizer import load_tokenizer
from tests import grids
from tests.data_prep.small_tokenizers import ANY_TEXT, path_of

PATTERNS = sorted(KNOWN_PATTERNS)
NUM_VOCABULARIES = 300 if grids.WHOLE else 80


def reference_ids(settings_: dict[str, Any], text: str) -> list[int]:
    backend = Tokenizer.from_str(json.dumps(settings_))
    backend.encode_special_tokens = True
    return backend.encode(text, add_special_tokens=False).ids


def random_merges(seed: int, *, alphabet: str, num_merges: int) -> list[list[str]]:
    """Merges in any order over few letters: many make the same token, many can never happen."""
    rng = random.Random(seed)
    tokens, merges = list(alphabet), []
    while len(merges) < num_merges:
        pair = [rng.choice(tokens), rng.choice(tokens)]
        if len("".join(pair)) <= 8 and pair not in merges:
            merges.append(pair)
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
    if rng.random() < 0.5:
        rng.shuffle(merges)
    return merges


def make_settings(
    merges: list[list[str]], *, pattern: str = PATTERNS[0], ids_seed: int = 0, **model: Any
) -> dict[str, Any]:
    """A byte-level BPE whose ids say nothing about the order of its merges."""
    letters = list(byte_of_character())
    tokens = list(dict.fromkeys([*letters, *("".join(pair) for pair in merges)]))
    ids = list(range(len(tokens)))
    random.Random(ids_seed).shuffle(ids)
    vocab = dict(zip(tokens, ids, strict=True))
    return {
        **probe_settings(pattern),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, **model},
    }


@given(
    seed=st.integers(0, 10**6),
    num_merges=st.integers(0, 60),
    words=st.lists(st.text("abc", max_size=24), max_size=6),
)
@settings(max_examples=NUM_VOCABULARIES, deadline=None)
def test_any_list_of_merges_gives_the_ids_of_the_reference(seed, num_merges, words):
    """Two merges that make one token, tokens that never come out, merges in impossible order."""
    made = make_settings(random_merges(seed, alphabet="abc", num_merges=num_merges), ids_seed=seed)
    path = path_of(made)
    for text in (" ".join(words), "".join(words)):
        ids = path.encode(text)
        assert ids is not None
        assert ids.tolist() == reference_ids(made, text)


def test_ranking_tokens_by_their_first_merge_would_be_wrong():
    """ "abc" is listed early as ab+c, which never happens, and late as a+bc, which does."""
    merges = [["b", "c"], ["a", "b"], ["ab", "c"], ["bc", "d"], ["a", "bc"]]
    made = make_settings(merges)
    token_of = {token: text for text, token in made["model"]["vocab"].items()}
    expected = reference_ids(made, "abcd")
    assert [token_of[token] for token in expected] == ["a", "bcd"]
    path = path_of(made)
    assert path.encode("abcd").tolist() == expected
    known = path._form["tokenizer"]["model"]
    assert known["merges"] == [["b", "c"], ["a", "b"], ["bc", "d"], ["a", "bc"]]
    assert [known["vocab"][token] for token in ("bc", "ab", "bcd", "abc")] == [256, 257, 258, 259]


@given(text=ANY_TEXT)
@settings(max_examples=NUM_VOCABULARIES, deadline=None)
def test_normalised_text_and_special_spellings(bpe_folder: Path, text: str) -> None:
    made = json.loads((bpe_folder / "tokenizer.json").read_text())
    made["normalizer"] = {"type": "NFC"}
    path = path_of(made)
    for probe in (text, f"<eos>{text}e\u0301</eos>"):
        ids = path.encode(probe)
        assert ids is not None
        assert ids.tolist() == reference_ids(made, probe)


def test_a_text_with_a_token_that_is_cut_out_goes_to_the_reference(bpe_folder: Path) -> None:
    backend = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    backend.add_tokens(["entropy", "\u00e9x"])
    made = json.loads(backend.to_str()) | {"normalizer": {"type": "NFC"}}
    path = path_of(made)
    assert path.encode("low entropy tokens") is None
    assert path.encode("e\u0301x") is None  # only after it is normalised
    assert path.encode("low tokens") is not None


@pytest.mark.parametrize("letter", [" ", "\n", "\t", "\u3000", "a", "7", "!", "\u00e9", "\u6c34"])
def test_a_run_without_end_is_no_trouble(bpe_folder, letter):
    """Regular expressions run out of stack there, and other libraries out of time."""
    path = path_of(json.loads((bpe_folder / "tokenizer.json").read_text()))
    text = "a" + letter * 20_000 + "b"
    backend = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    assert path.encode(text).tolist() == backend.encode(text, add_special_tokens=False).ids
    assert len(path.encode("a" + letter * 10**6)) > 1000


def test_a_tokenizer_made_anew_gives_the_same_ids(bpe_folder, monkeypatch):
    """As is done when its cache, which has no bound, has grown."""
    made = json.loads((bpe_folder / "tokenizer.json").read_text())
    texts = ["some words", "other words " * 200, "some words", "words"]
    expected = [path_of(made).encode(text).tolist() for text in texts]
    monkeypatch.setattr(gigatoken_path, "_MAX_GROWTH_BYTES", -(1 << 60))
    monkeypatch.setattr(gigatoken_path, "_BYTES_BETWEEN_LOOKS", 1 << 10)
    path = path_of(made)
    assert [path.encode(text).tolist() for text in texts] == expected
    assert path._num_bytes < sum(map(len, texts))


def test_what_one_process_has_proven_another_loads(tmp_path):
    made = make_settings([["a", "b"], ["b", "c"]], ids_seed=3)
    proven = path_of(made)
    proven.save(tmp_path / "path.json")
    loaded = GigatokenPath.load(tmp_path / "path.json")
    assert np.array_equal(loaded.encode("abcab"), proven.encode("abcab"))


def _changed(**changes: Any) -> dict[str, Any]:
    made = make_settings([["a", "b"]])
    for name, value in changes.items():
        target = made["model"] if name in ("dropout", "type", "vocab", "ignore_merges") else made
        target[name] = value
    return made


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (_changed(normalizer={"type": "NFKC"}), "normalises with NFKC"),
        (_changed(pre_tokenizer={"type": "Whitespace"}), "does not split words as GPT-2"),
        (_changed(pre_tokenizer=None), "does not split words as GPT-2"),
        (_changed(dropout=0.1), "sets dropout"),
        (_changed(vocab={"a": 0, "b": 1, "ab": 2}), "has 2 of the 256 bytes"),
    ],
)
def test_what_is_not_provably_the_same_is_refused_with_the_reason(made, reason):
    with pytest.raises(NotTheSame, match=reason):
        path_of(made)


@given(
    seed=st.integers(0, 10**6),
    num_merges=st.integers(0, 40),
    extra=st.lists(st.text("abc", min_size=2, max_size=6), max_size=8),
    words=st.lists(st.text("abc", max_size=16), max_size=6),
)
@settings(max_examples=NUM_VOCABULARIES, deadline=None)
def test_words_taken_whole_are_found(seed, num_merges, extra, words):
    """With ignore_merges (Llama 3) a word in the vocabulary is taken whole, merges or not."""
    made = make_settings(
        random_merges(seed, alphabet="abc", num_merges=num_merges),
        ids_seed=seed,
        ignore_merges=True,
    )
    for token in extra:  # tokens of no merge
        made["model"]["vocab"].setdefault(token, len(made["model"]["vocab"]))
    path = path_of(made)
    for text in (" ".join(words), "".join(words)):
        assert path.encode(text).tolist() == reference_ids(made, text)


def test_a_word_taken_whole_needs_no_merge():
    made = make_settings([["a", "b"]], ignore_merges=True)
    made["model"]["vocab"]["ba"] = ba = len(made["model"]["vocab"])
    for text in ("ba", "ab abab ba", "baba"):
        assert path_of(made).encode(text).tolist() == reference_ids(made, text)
    assert reference_ids(made, "ba") == [ba]
    made["model"]["ignore_merges"] = False  # then the token never comes out, and nothing is lost
    assert path_of(made).encode("ba").tolist() == reference_ids(made, "ba")


def test_the_tokenizer_says_which_library_encodes_and_both_agree(
    bpe_folder: Path, unigram_folder: Path, tricky: tuple[str, ...]
) -> None:
    fast, slow = load_tokenizer(bpe_folder), load_tokenizer(bpe_folder, fast=False)
    assert fast.how.startswith("gigatoken, proven equivalent")
    assert slow.how == "the Hugging Face library"
    assert load_tokenizer(unigram_folder).how == "sentencepiece"
    for ours, expected in zip(fast.encode(tricky), slow.encode(tricky), strict=True):
        assert np.array_equal(ours, expected)


def test_other_versions_are_compared_before_they_are_trusted(bpe_folder, monkeypatch):
    monkeypatch.setattr(tokenizer, "VERIFIED_VERSIONS", frozenset())
    monkeypatch.setattr(tokenizer, "first_difference", lambda pattern: "a text")
    assert "its Unicode tables differ from gigatoken's" in load_tokenizer(bpe_folder).how
    monkeypatch.setattr(tokenizer, "first_difference", lambda pattern: None)
    assert load_tokenizer(bpe_folder).how.startswith("gigatoken")


def test_a_disagreement_stops_the_build_and_names_the_text(bpe_folder, monkeypatch):
    ours = load_tokenizer(bpe_folder)
    monkeypatch.setattr(
        GigatokenPath, "encode", lambda path, text: np.zeros(len(text), dtype=np.uint32)
    )
    with pytest.raises(ValueError, match="disagree on the text that begins 'some text'"):
        ours.encode(["some text"])


def test_without_the_library_the_build_goes_on_and_says_so(bpe_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    ours = load_tokenizer(bpe_folder)
    assert "gigatoken would be faster, but it cannot be loaded" in ours.how
    assert ours.encode(["some text"])[0].tolist()
