"""Compares what ids spell with the text that was encoded, and names the characters that are lost.

Both are bytes: of the text as the model gets it, after the tokenizer's normaliser and its split
into words, and of the tokens as its vocabulary spells them. The library that encodes takes no
part in the second, so that neither its faults nor what it drops without a word can hide.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_NUM_SHOWN = 10
SPACE_MARK = "\u2581"  # a blank, to tokenizers that keep blanks in their tokens


@dataclass(frozen=True)
class Loss:
    """Characters of a text that its ids do not spell."""

    num_chars: int
    first: int
    """Place of the first in the text, from 0."""
    chars: str
    """The first few different ones."""

    def __str__(self) -> str:
        many = "" if self.num_chars == 1 else "s"
        more = ", ..." if len(self.chars) == _NUM_SHOWN else ""
        shown = ", ".join(map(repr, self.chars))
        return f"{self.num_chars:,} character{many}: {shown}{more}, first at {self.first:,}"


class RoundTrip(Protocol):
    """The way from a text to ids and back, for one tokenizer."""

    eats_blanks: tuple[str, ...]
    """Tokens that are found within texts and take the blanks beside them away."""

    def prepared(self, text: str) -> bytes:
        """The text as the model gets it."""

    def is_suspect(self, text: str, ids: np.ndarray) -> bool:
        """Whether the ids [n] of a text may lose some of it; cheap, for every document."""

    def loss(self, text: str, ids: np.ndarray) -> Loss | None:
        """What the ids [n] of a text lose of it; None if nothing."""


def loss_of(pairs: Iterable[tuple[bytes, bytes]], *, text: str) -> Loss | None:
    """What is lost over the parts of a text, each as (expected, found)."""
    num_chars = 0
    before = ""  # the first that is lost
    chars: dict[str, None] = {}
    for expected, found in pairs:
        lost = [] if expected == found else _lost_chars(expected, found)
        if not num_chars:
            part = expected.decode("utf-8", "replace")
            before += part[: lost[0][0]] if lost else part
        num_chars += len(lost)
        if len(chars) < _NUM_SHOWN:
            chars.update(dict.fromkeys(char for _, char in lost))
    if not num_chars:
        return None
    shown = "".join(list(chars)[:_NUM_SHOWN])
    return Loss(num_chars, first=_place_in(text, before=before, char=shown[:1]), chars=shown)


class _KeptCharacters(dict[int, str]):
    """What `str.translate` leaves of each character, found out on first use."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        # Marks, control characters and all that is unassigned, white space, and what stands for
        # a blank or for bytes that were no text.
        is_dropped = unicodedata.category(char)[0] in "MCZ" or char in (SPACE_MARK, "\ufffd")
        self[code] = "" if is_dropped or char.isspace() else char
        return self[code]


_KEPT = _KeptCharacters()


def essence(text: str) -> str:
    """What no normaliser may touch unnoticed: without the differences that `changes_of` names."""
    # Marks go first: folding makes a letter of the Greek iota that stands below another.
    folded = unicodedata.normalize("NFKD", text).translate(_KEPT).casefold()
    return unicodedata.normalize("NFKD", folded).translate(_KEPT)


def rewritten(text: str, *, normalised: str) -> Loss | None:
    """What a normaliser makes other characters of, or drops, beside what `changes_of` names.

    Characters are counted, not aligned, which is linear. Where all are there, but with others
    among them or in another order, one counts as changed.
    """
    if normalised == text:
        return None
    expected, found = essence(text), essence(normalised)
    if expected == found:
        return None
    lost = Counter(expected) - Counter(found)
    if not lost:
        if "Cn" in map(unicodedata.category, set(text)):
            return None  # newer than Python's tables, so no telling what it may become
        pairs = enumerate(zip(expected, found, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), len(expected) - 1)
        lost = Counter(expected[place : place + 1] or found[:1])
    own = [char for char in dict.fromkeys(text) if lost.keys() & set(essence(char))]
    fewer = Counter(text) - Counter(normalised)
    shown = [char for char in own if char in fewer] or own
    first = text.find(shown[0]) if shown else 0
    return Loss(lost.total(), first=first, chars="".join(shown[:_NUM_SHOWN]))


def both_losses(first: Loss | None, second: Loss | None) -> Loss | None:
    """What is lost in two steps, such as by the normaliser and by the vocabulary."""
    if first is None or second is None:
        return first or second
    chars = "".join(dict.fromkeys(first.chars + second.chars))[:_NUM_SHOWN]
    num_chars = first.num_chars + second.num_chars
    return Loss(num_chars, first=min(first.first, second.first), chars=chars)


def _place_in(text: str, *, before: str, char: str) -> int:
    """The place in the text itself: the normaliser may have put others before it, or taken away."""
    place = -1
    for _ in range(before.count(char) + 1 if char else 0):
        place = text.find(char, place + 1)
        if place < 0:
            break
    return place if place >= 0 else min(len(before), max(len(text) - 1, 0))


def _lost_chars(expected: bytes, found: bytes) -> list[tuple[int, str]]:
    """Places and characters of `expected` that `found`, read along with it, does not have.

    Example: of "naïve" found "nave" the lost one is (2, "ï"). Where nothing is missing, but more
    is found than expected, the last character counts as changed.
    """
    text = expected.decode("utf-8", "replace")
    lost, at = [], 0
    for place, char in enumerate(text):
        raw = char.encode()
        if found.startswith(raw, at):
            at += len(raw)
        else:
            lost.append((place, char))
    return lost or [(max(len(text) - 1, 0), text[-1:])]


def changes_of(
    prepared: Callable[[str], bytes], *, eats_blanks: Sequence[str] = ()
) -> tuple[str, ...]:
    """What a tokenizer does to texts before the model gets them, in words.

    Canonical forms (NFC) are left out: to Unicode they are the same text.
    """

    def kept(text: str) -> str:
        return prepared(text).decode("utf-8", "replace").replace(SPACE_MARK, " ")

    drops_blanks = " " not in kept("x x").strip()
    lines = [
        name
        for name, sign in (("line ends", "\n"), ("tabs", "\t"))
        if sign not in kept(f"x{sign}x")
    ]
    fate = "become blanks" if " " in kept("x\nx").strip() else "are dropped"
    accent = kept("\u00e9")
    found = {
        "white space only separates words": drops_blanks,
        f"{' and '.join(lines)} {fate}": bool(lines) and not drops_blanks,
        "several blanks become one": not drops_blanks and "  " not in kept("x  x").strip(),
        "blanks at the end are dropped": not drops_blanks and not kept("x ").endswith(" "),
        "capitals become small letters": "X" not in kept("X"),
        "accents are dropped": not {"\u00e9", "\u0301"} & set(accent),
        "compatible characters become one (NFKC)": "\ufb01" not in kept("\ufb01"),
        "control characters are dropped": "\x07" not in kept("x\x07x"),
    }
    changes = [words for words, holds in found.items() if holds]
    if eats_blanks:
        changes.append(f"blanks beside {_listed(eats_blanks)} are dropped")
    return (*changes, *_rewrites(kept))


def _rewrites(kept: Callable[[str], str]) -> list[str]:
    """What is done to ordinary characters, each tried alone and doubled."""
    lost: list[str] = []
    added: Counter[str] = Counter()
    for char in string.digits + string.ascii_letters + string.punctuation:
        for text in (char, 2 * char):
            result = kept(text)
            expected, found = Counter(essence(text)), Counter(essence(result))
            if expected - found and char not in lost:
                lost.append(char)
            if found - expected:
                added |= Counter(result) - Counter(text)
    if lost:
        return [f"characters are dropped or replaced: {_listed(lost)}"]
    return [f"characters are put in: {_listed(list(added))}"] if added else []


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NUM_SHOWN else ""
    return ", ".join(map(repr, names[:_NUM_SHOWN])) + more
