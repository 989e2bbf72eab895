"""What the two libraries know of characters: the same, or the text goes to the reference."""

from __future__ import annotations

import functools
import json
import unicodedata

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer
from tokenizers.normalizers import NFC

from data_prep.tokenizing import split_check
from data_prep.tokenizing.gigatoken_path import NEWER_CHARACTERS, GigatokenPath
from data_prep.tokenizing.long_text import GPT2_PATTERN, KNOWN_PATTERNS
from data_prep.tokenizing.split_check import first_difference, probe_settings
from tests import grids
from tests.data_prep.small_tokenizers import ANY_TEXT, path_of

PATTERNS = sorted(KNOWN_PATTERNS)


@pytest.mark.parametrize("pattern", PATTERNS, ids=["gpt2", "llama3", "qwen2"])
@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_any_text_splits_as_the_reference_splits_it(pattern, text):
    path, reference = both_libraries(pattern)
    ids = path.encode(text)
    assert ids is not None
    assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids


@functools.cache
def both_libraries(pattern: str) -> tuple[GigatokenPath, Tokenizer]:
    made = probe_settings(pattern)
    return path_of(made), Tokenizer.from_str(json.dumps(made))


@pytest.mark.parametrize("pattern", PATTERNS, ids=["gpt2", "llama3", "qwen2"])
def test_both_libraries_know_every_character_alike(pattern):
    """What VERIFIED_VERSIONS claims of the installed versions, over Unicode.

    Every pattern asks each library's one table of letters, numbers and white space: the planes of
    rare characters are gone through with one of them, but for those of ideographs alone. `make
    test-all` takes all.
    """
    planes = (0, 1, 14) if pattern == GPT2_PATTERN else (0,)
    if grids.WHOLE:
        planes = range(17)
    assert first_difference(pattern, planes=planes) is None


def test_a_library_that_knew_another_unicode_would_be_found(monkeypatch):
    """ "ℵ" is a letter to one and a symbol to the other."""
    encode = GigatokenPath.encode
    monkeypatch.setattr(
        split_check.GigatokenPath, "encode", lambda path, text: encode(path, text.replace("ℵ", "∀"))
    )
    found = first_difference(GPT2_PATTERN, planes=[0])
    assert found is not None
    assert "ℵ" in found


def test_what_python_finds_composed_the_library_leaves_as_it_is() -> None:
    """Then the library, which is slow at that, is not asked."""
    compose = NFC().normalize_str
    for context in ("e{}\u0323\u0301", "e{}\u0301", "\u1100{}\u11a8", "{}"):
        for plane in range(17) if grids.WHOLE else (0, 1):
            for code in range(plane << 16, (plane + 1) << 16):
                text = context.format(chr(code))
                if not 0xD800 <= code < 0xE000 and unicodedata.is_normalized("NFC", text):
                    assert compose(text) == text


def test_a_text_with_a_character_newer_than_the_reference_goes_to_it(bpe_folder):
    path = path_of(json.loads((bpe_folder / "tokenizer.json").read_text()))
    for character in NEWER_CHARACTERS:
        assert path.encode(f"a {character} b") is None
    # the same first bytes: Arabic, Telugu, Kannada, Latin, Gothic, Tangut, rare ideographs
    for character in "\u08a0\u0c41\u0cc1\ua7a0\U00010330\U00017000\U0002a700\U0002b740":
        assert path.encode(f"a {character} b") is not None
