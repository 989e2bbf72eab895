"""tiktoken in place of the Hugging Face library: only where both give the same ids."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.tokenizing import split_check, tokenizer
from data_prep.tokenizing.long_text import GPT2_PATTERN, KNOWN_PATTERNS
from data_prep.tokenizing.split_check import first_difference, probe_settings
from data_prep.tokenizing.tiktoken_path import NotTheSame, TiktokenPath, byte_of_character
from data_prep.tokenizing.tokenizer import HuggingFaceTokenizer, load_tokenizer
from tests import grids

PATTERNS = sorted(KNOWN_PATTERNS)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=120)


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
@settings(max_examples=300, deadline=None)
def test_any_list_of_merges_gives_the_ids_of_the_reference(seed, num_merges, words):
    """Two merges that make one token, tokens that never come out, merges in impossible order."""
    made = make_settings(random_merges(seed, alphabet="abc", num_merges=num_merges), ids_seed=seed)
    path = TiktokenPath(made)
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
    assert TiktokenPath(made).encode("abcd").tolist() == expected
    # By place of the first merge, as ids of a trained tokenizer run, "abc" would win over "bcd".
    singles = {bytes([byte]): byte for byte in range(256)}
    longer = dict.fromkeys("".join(pair).encode() for pair in merges)
    ranks = singles | {token: 256 + place for place, token in enumerate(longer)}
    plain = tiktoken.Encoding("x", pat_str=PATTERNS[0], mergeable_ranks=ranks, special_tokens={})
    assert plain.decode_tokens_bytes(plain.encode_ordinary("abcd")) == [b"abc", b"d"]


@pytest.mark.parametrize("pattern", PATTERNS, ids=["gpt2", "llama3", "qwen2"])
@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_any_text_splits_as_the_reference_splits_it(pattern, text):
    path, reference = both_libraries(pattern)
    ids = path.encode(text)
    assert ids is not None
    assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids


@functools.cache
def both_libraries(pattern: str) -> tuple[TiktokenPath, Tokenizer]:
    made = probe_settings(pattern)
    return TiktokenPath(made), Tokenizer.from_str(json.dumps(made))


@pytest.mark.parametrize("pattern", PATTERNS, ids=["gpt2", "llama3", "qwen2"])
def test_both_libraries_know_every_character_alike(pattern):
    """What VERIFIED_VERSIONS claims of the installed versions, over Unicode.

    Every pattern asks each library's one table of letters, numbers and white space: the planes of
    rare characters are gone through with one of them. `make test-all` takes all, and the planes
    without a character.
    """
    planes = (0, 1, 2, 3, 14) if pattern == GPT2_PATTERN else (0,)
    if grids.WHOLE:
        planes = range(17)
    assert first_difference(pattern, planes=planes) is None


def test_a_library_that_knew_another_unicode_would_be_found(monkeypatch):
    """ "ℵ" is a letter to one and a symbol to the other."""
    encode = TiktokenPath.encode
    monkeypatch.setattr(
        split_check.TiktokenPath, "encode", lambda path, text: encode(path, text.replace("ℵ", "∀"))
    )
    found = first_difference(GPT2_PATTERN, planes=[0])
    assert found is not None
    assert "ℵ" in found


@given(text=ANY_TEXT)
@settings(max_examples=200, deadline=None)
def test_normalised_text_and_special_spellings(bpe_folder: Path, text: str) -> None:
    made = json.loads((bpe_folder / "tokenizer.json").read_text())
    made["normalizer"] = {"type": "NFC"}
    path = TiktokenPath(made)
    for probe in (text, f"<eos>{text}e\u0301</eos>"):
        ids = path.encode(probe)
        assert ids is not None
        assert ids.tolist() == reference_ids(made, probe)


def test_a_text_with_a_token_that_is_cut_out_goes_to_the_reference(bpe_folder: Path) -> None:
    backend = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    backend.add_tokens(["entropy", "\u00e9x"])
    made = json.loads(backend.to_str()) | {"normalizer": {"type": "NFC"}}
    path = TiktokenPath(made)
    assert path.encode("low entropy tokens") is None
    assert path.encode("e\u0301x") is None  # only after it is normalised
    assert path.encode("low tokens") is not None


@pytest.mark.parametrize(("length", "is_taken"), [(3000, True), (20_000, False), (10**6, False)])
def test_white_space_without_end_goes_to_the_reference(bpe_folder, length, is_taken):
    """tiktoken's own stack overflows at about a million, which ends the process."""
    path = TiktokenPath(json.loads((bpe_folder / "tokenizer.json").read_text()))
    for space in (" ", "\n", "\t", "\u3000"):
        text = "a" + space * length + "b"
        assert (path.encode(text) is not None) == is_taken


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
        (_changed(type="WordPiece"), "is WordPiece, not BPE"),
        (_changed(vocab={"a": 0, "b": 1, "ab": 2}), "has 2 of the 256 bytes"),
    ],
)
def test_what_is_not_provably_the_same_is_refused_with_the_reason(made, reason):
    with pytest.raises(NotTheSame, match=reason):
        TiktokenPath(made)


@given(
    seed=st.integers(0, 10**6),
    num_merges=st.integers(0, 40),
    extra=st.lists(st.text("abc", min_size=2, max_size=6), max_size=8),
    words=st.lists(st.text("abc", max_size=16), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_words_taken_whole_are_found_or_left_to_the_reference(seed, num_merges, extra, words):
    """With ignore_merges (Llama 3) a word in the vocabulary is taken whole, merges or not."""
    made = make_settings(
        random_merges(seed, alphabet="abc", num_merges=num_merges),
        ids_seed=seed,
        ignore_merges=True,
    )
    for token in extra:  # tokens of no merge
        made["model"]["vocab"].setdefault(token, len(made["model"]["vocab"]))
    path = TiktokenPath(made)
    for text in (" ".join(words), "".join(words)):
        ids = path.encode(text)
        assert ids is None or ids.tolist() == reference_ids(made, text)


def test_only_texts_that_hold_such_a_word_are_left_to_the_reference():
    made = make_settings([["a", "b"]], ignore_merges=True)
    made["model"]["vocab"]["ba"] = ba = len(made["model"]["vocab"])
    assert reference_ids(made, "ba") == [ba]
    path = TiktokenPath(made)
    assert path.encode("ba") is None
    assert path.encode("ab abab").tolist() == reference_ids(made, "ab abab")
    made["model"]["ignore_merges"] = False  # then the token never comes out, and nothing is lost
    assert TiktokenPath(made).encode("ba").tolist() == reference_ids(made, "ba")


def test_the_tokenizer_says_which_library_encodes_and_both_agree(
    bpe_folder: Path, unigram_folder: Path, tricky: tuple[str, ...]
) -> None:
    fast, slow = load_tokenizer(bpe_folder), load_tokenizer(bpe_folder, fast=False)
    assert fast.how.startswith("tiktoken, proven equivalent")
    assert slow.how == "the Hugging Face library"
    assert load_tokenizer(unigram_folder).how == "sentencepiece"
    for ours, expected in zip(fast.encode(tricky), slow.encode(tricky), strict=True):
        assert np.array_equal(ours, expected)


def test_other_versions_are_compared_before_they_are_trusted(bpe_folder, monkeypatch):
    monkeypatch.setattr(tokenizer, "VERIFIED_VERSIONS", frozenset())
    monkeypatch.setattr(tokenizer, "first_difference", lambda pattern: "a text")
    assert "its Unicode tables differ from tiktoken's" in load_tokenizer(bpe_folder).how
    monkeypatch.setattr(tokenizer, "first_difference", lambda pattern: None)
    assert load_tokenizer(bpe_folder).how.startswith("tiktoken")


def test_a_disagreement_stops_the_build_and_names_the_text(bpe_folder, monkeypatch):
    ours = HuggingFaceTokenizer(bpe_folder)
    monkeypatch.setattr(
        TiktokenPath, "encode", lambda path, text: np.zeros(len(text), dtype=np.uint32)
    )
    with pytest.raises(ValueError, match="disagree on the text that begins 'some text'"):
        ours.encode(["some text"])
