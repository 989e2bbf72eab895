"""Checks that two libraries split words alike, for every character in revealing contexts.

The patterns refer to letters, numbers, white space, line ends and, in any case, a few
contractions. Libraries ship Unicode tables of different versions, so the classes are compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import tokenizers

from data_prep.tokenizing.gigatoken_path import (
    NEWER_CHARACTERS,
    GigatokenPath,
    byte_of_character,
)
from data_prep.tokenizing.long_text import GPT2_PATTERN

_CHUNK = 1 << 10
_BATCH = 64
_SURROGATES = range(0xD800, 0xE000)
# Unassigned or uniform: private use, and planes without a character.
_SPARSE_PLANES = (*range(4, 14), 15, 16)
_SPARSE_STEP = 251
# The others have letters and what is neither letter nor number, no white space and no case.
_MANY_CLASSES = {0, 1}
# A merge of the first character with what follows shows that both are in one word.
_CLASS_CONTEXTS = ("a{}\n", "1{}\n", "!{}\n")
_CONTEXTS = (*_CLASS_CONTEXTS, " {}\n", "\n{}\n", "a{}a\n", "\n{}\n\n")
_CONTRACTIONS = ("'{}a\n", "'{}ea\n", "'{}la\n", "'r{}a\n", "'v{}a\n", "'l{}a\n")


def first_difference(pattern: str, *, planes: Iterable[int] = range(17)) -> str | None:
    """A text on which tokenizers and gigatoken differ, or None; takes about ten seconds.

    Characters that are left to the reference library anyway are left out.
    """
    settings = probe_settings(pattern)
    reference = tokenizers.Tokenizer.from_str(json.dumps(settings))
    path = GigatokenPath.of(settings, backend=reference)
    probes = _probes(planes)
    while texts := list(islice(probes, _BATCH)):
        encoded = reference.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encoded, strict=True):
            ids = path.encode(text)
            if ids is None or ids.tolist() != encoding.ids:
                return text
    return None


def probe_settings(pattern: str) -> dict[str, Any]:
    """A byte-level tokenizer in which every adjacent byte pair of the probes is a token."""
    characters = {byte: character for character, byte in byte_of_character().items()}
    vocab = {character: byte for byte, character in characters.items()}
    firsts, seconds = "a1! \n'rvl", range(256)
    pairs = [(ord(first), second) for first in firsts for second in seconds]
    pairs += [(byte, ord(last)) for byte in range(256) for last in "a\n" if byte >= 0x80]
    merges = []
    for first, second in dict.fromkeys(pairs):
        merges.append([characters[first], characters[second]])
        vocab.setdefault("".join(merges[-1]), len(vocab))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {**byte_level, "use_regex": True}
        if pattern == GPT2_PATTERN
        else {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {**byte_level, "use_regex": False}],
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
    }


def _probes(planes: Iterable[int]) -> Iterator[str]:
    for contexts, points in (
        (_CONTEXTS, list(_points(set(planes) & _MANY_CLASSES))),
        (_CLASS_CONTEXTS, list(_points(set(planes) - _MANY_CLASSES))),
        (_CONTRACTIONS, [p for p in _points([0]) if p < 0x3000]),
    ):
        for start in range(0, len(points), _CHUNK):
            chunk = [chr(point) for point in points[start : start + _CHUNK]]
            for context in contexts:
                yield "".join(context.format(character) for character in chunk)


def _points(planes: Iterable[int]) -> Iterator[int]:
    for plane in planes:
        step = _SPARSE_STEP if plane in _SPARSE_PLANES else 1
        for point in range(plane << 16, (plane + 1) << 16, step):
            if point not in _SURROGATES and chr(point) not in NEWER_CHARACTERS:
                yield point
