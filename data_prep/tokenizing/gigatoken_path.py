"""Byte-level BPE with `gigatoken`, tens of times faster, where it is provably equivalent.

Hugging Face merges, among neighbours listed as a merge, the pair listed first; gigatoken merges,
among neighbours that it has a merge for, the pair whose token has the lowest id. Both take the
leftmost on ties. Call a token *sound* when its own bytes, encoded alone, give that token back. In
any text the merges inside a span that becomes one token are those of the span encoded alone, in
that order, since nothing outside takes part. It follows that

- a token that is not sound never appears, so gigatoken need not know it;
- a sound token always results from one and the same last merge. So one merge for each, and ids in
  the order of these merges in the list, give each pair that can meet the priority that the list
  gives it, and no other pair is ever merged.

Both are written as a tokenizer of its own (`canonical_form`), which is all that gigatoken reads.
Its own conversion ranks tokens by their ids or by the first merge that makes them, and cuts out
special tokens, which are plain text to us.

With `ignore_merges` (Llama 3) a whole word that is a token is taken as it is, sound or not. So
does gigatoken: tokens that are not sound are then known to it, without a merge.

Splitting into words is compared over all of Unicode in `split_check.py`. gigatoken knows the
characters that are new in Unicode 17, the Hugging Face library does not; a text with one of them
is left to that library.
"""

from __future__ import annotations

import os
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tokenizers

from data_prep.tokenizing.long_text import KNOWN_PATTERNS, splitting_patterns

# gigatoken keeps every word that it has seen. Real text needs about 0.2 bytes of memory for each
# byte, random letters 9. Its tokenizer is made anew when memory has grown by this much.
_MAX_GROWTH_BYTES = 1 << 28
_BYTES_BETWEEN_LOOKS = 1 << 24

NEWER_CHARACTERS = frozenset(
    chr(code)
    for first, last in (
        (0x088F, 0x088F), (0x0C5C, 0x0C5C), (0x0CDC, 0x0CDC), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2),
        (0xA7D4, 0xA7D4), (0xA7F1, 0xA7F1), (0x10940, 0x10959), (0x10EC5, 0x10EC7),
        (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9), (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3),
        (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E), (0x18D80, 0x18DF2),
        (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6E2), (0x1E6E4, 0x1E6E5), (0x1E6E7, 0x1E6ED),
        (0x1E6F0, 0x1E6F4), (0x1E6FE, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD),
        (0x323B0, 0x33479),
    )
    for code in range(first, last + 1)
)  # fmt: skip
# Their first two bytes, which few others share, rule out most texts at the speed of memory.
_FIRST_BYTES = frozenset(character.encode()[:1] for character in NEWER_CHARACTERS)
_FIRST_TWO_BYTES = re.compile(
    b"|".join(map(re.escape, sorted({character.encode()[:2] for character in NEWER_CHARACTERS})))
)


class NotTheSame(Exception):
    """Why gigatoken cannot replace this tokenizer."""


class GigatokenPath:
    """Encodes plain texts, except some that are left to the reference library."""

    def __init__(self, form: dict[str, Any]) -> None:
        """Of a form that `canonical_form` has made in this process or another."""
        self.pattern: str = form["pattern"]
        self._form = form
        self._cut_out: list[str] = form["cut_out"]
        self._normalizer = tokenizers.normalizers.NFC() if form["composes"] else None
        self._id_of_rank = np.array(form["id_of_rank"], dtype=np.uint32)
        # Often ids are ranks behind the special tokens: adding is faster than looking up.
        shifts = np.unique(self._id_of_rank - np.arange(len(self._id_of_rank), dtype=np.uint32))
        self._shift = shifts[0] if len(shifts) == 1 else None
        self._json = orjson.dumps(form["tokenizer"])
        self._encoder: Any = None
        self._num_bytes = self._next_look = self._resident_at_first = 0

    @classmethod
    def of(cls, settings: dict[str, Any], *, backend: tokenizers.Tokenizer) -> GigatokenPath:
        """Prove the two equivalent for a tokenizer, or raise `NotTheSame` and say why."""
        form = canonical_form(settings, backend=backend)
        _load_gigatoken()
        return cls(form)

    @classmethod
    def load(cls, path: Path) -> GigatokenPath:
        """What another process has proven and saved."""
        return cls(orjson.loads(path.read_bytes()))

    def save(self, path: Path) -> None:
        path.write_bytes(orjson.dumps(self._form))

    def encode(self, text: str) -> np.ndarray | None:
        """Ids of a text, [n] uint32; None if this path cannot encode it."""
        if self._has_cut_out(text):
            return None
        # What newer Unicode tables find composed, those of the library find composed too: they
        # know fewer marks and fewer pairs.
        if self._normalizer and not unicodedata.is_normalized("NFC", text):
            text = self._normalizer.normalize_str(text)
            if self._has_cut_out(text):
                return None
        raw = text.encode()
        if len(raw) > len(text) and _may_be_newer(text, raw=raw):
            return None
        self._num_bytes += len(raw)
        if self._num_bytes >= self._next_look:
            self._make_encoder_anew_if_grown()
        ranks: np.ndarray = self._encoder.encode(raw)
        if self._shift is None:
            return self._id_of_rank[ranks]
        ranks += self._shift
        return ranks

    def _has_cut_out(self, text: str) -> bool:
        return any(token in text for token in self._cut_out)

    def _make_encoder_anew_if_grown(self) -> None:
        growth = _resident_bytes() - self._resident_at_first
        if self._encoder is None or growth > _MAX_GROWTH_BYTES:
            self._encoder = None  # before the next is made
            self._encoder = _load_gigatoken()(self._json)
            self._num_bytes, self._resident_at_first = 0, _resident_bytes()
        self._next_look = self._num_bytes + _BYTES_BETWEEN_LOOKS


def _may_be_newer(text: str, *, raw: bytes) -> bool:
    # From the cheapest test to the dearest; most texts fail the first.
    return (
        any(first in raw for first in _FIRST_BYTES)
        and _FIRST_TWO_BYTES.search(raw) is not None
        and not NEWER_CHARACTERS.isdisjoint(text)
    )


def _load_gigatoken() -> Any:
    try:
        from gigatoken.gigatoken_rs import load_hf_json
    except ImportError as error:
        raise NotTheSame(f"it cannot be loaded ({error})") from None
    return load_hf_json


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_bytes().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def canonical_form(settings: dict[str, Any], *, backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """What gigatoken must know to give this tokenizer's ids, or `NotTheSame`.

    Args:
        settings: of the backend, as it is in a `tokenizer.json`.
    """
    pattern = _splitting_pattern(settings)
    kind = (settings.get("normalizer") or {}).get("type")
    if kind not in (None, "NFC"):
        raise NotTheSame(f"it normalises with {kind}")
    ids, texts, merges = _ranked(settings["model"], backend=backend)
    # Special tokens are plain text to us; the others are cut out before words are split.
    added = settings.get("added_tokens") or []
    return {
        "pattern": pattern,
        "cut_out": [token["content"] for token in added if not token["special"]],
        "composes": bool(kind),
        "id_of_rank": ids,
        "tokenizer": {
            "added_tokens": [],
            "pre_tokenizer": settings["pre_tokenizer"],
            "model": {
                "type": "BPE",
                "vocab": {text: rank for rank, text in enumerate(texts)},
                "merges": merges,
                "ignore_merges": bool(settings["model"].get("ignore_merges")),
            },
        },
    }


def _splitting_pattern(settings: dict[str, Any]) -> str:
    patterns = splitting_patterns(settings.get("pre_tokenizer") or {})
    if patterns is None or len(patterns) != 1 or patterns[0] not in KNOWN_PATTERNS:
        raise NotTheSame("it does not split words as GPT-2, Llama 3 or Qwen 2 do")
    return patterns[0]


def _ranked(
    model: dict[str, Any], *, backend: tokenizers.Tokenizer
) -> tuple[list[int], list[str], list[list[str]]]:
    """Ids and texts by rank, and the merge of each sound token in this order."""
    if model.get("type") != "BPE":
        raise NotTheSame(f"its model is {model.get('type')}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise NotTheSame(f"it sets {name}")
    byte_of = byte_of_character()
    is_letter = set(byte_of)
    tokens = {
        text: token for text, token in model["vocab"].items() if text and is_letter.issuperset(text)
    }
    singles = [character for character in byte_of if character in tokens]
    if len(singles) < 256:
        raise NotTheSame(f"its vocabulary has {len(singles)} of the 256 bytes")
    longer = [text for text in tokens if len(text) > 1]
    sound = _sound_tokens(longer, vocab=tokens, backend=backend)
    listed = [m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"]]
    last = _last_merges(sound, listed=listed)
    by_rank = [*singles, *sorted(sound, key=last.__getitem__)]
    merges = [listed[last[text]] for text in by_rank[256:]]
    if model.get("ignore_merges"):
        by_rank += sorted(set(longer).difference(sound))
    return [tokens[text] for text in by_rank], by_rank, merges


def _sound_tokens(
    texts: list[str], *, vocab: dict[str, int], backend: tokenizers.Tokenizer
) -> list[str]:
    """Tokens whose own bytes, encoded alone and by merges only, give that token back."""
    model = backend.model
    takes_whole, model.ignore_merges = model.ignore_merges, False
    try:
        return [
            text for text in texts if [token.id for token in model.tokenize(text)] == [vocab[text]]
        ]
    finally:
        model.ignore_merges = takes_whole


def _last_merges(texts: list[str], *, listed: list[list[str]]) -> dict[str, int]:
    """The place in the list of the merge that makes each sound token."""
    places = {(first, second): place for place, (first, second) in enumerate(listed)}
    makers: dict[str, int] = {}
    of_many = set()
    for (first, second), place in places.items():
        if makers.setdefault(first + second, place) != place:
            of_many.add(first + second)
    return {
        text: _last_merge(text, places=places) if text in of_many else makers[text]
        for text in texts
    }


def _last_merge(text: str, *, places: dict[tuple[str, str], int]) -> int:
    parts = list(text)
    last = -1
    while len(parts) > 1:
        pairs = [(places.get(pair, len(places)), at) for at, pair in enumerate(pairwise(parts))]
        last, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return last


def byte_of_character() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + i): byte for i, byte in enumerate(others)}
