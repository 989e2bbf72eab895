"""Words of texts, ignoring case, width and punctuation, and hashes of all of them at once."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_WORD = re.compile(r"\w+")
_MULTIPLIER = 0x9E3779B97F4A7C15
END = "\0"
"""Of a text among several; no character of a word."""


class Pieces(NamedTuple):
    """Texts cut where a word ends, so that pieces of tokens can be put together to words.

    Example: "a, bc." is "a", ", bc" and "."; before and after it the words may go on.
    """

    sums: np.ndarray
    """`[P]` uint64: the polynomial in the codes of the characters of each one's word, if any."""
    lengths: np.ndarray
    """`[P]` int64: how many characters these are."""
    is_apart: np.ndarray
    """`[P]` bool: whether it does not begin within a word."""


def normalised(text: str) -> str:
    """What words are found in."""
    if text.isascii():
        return text.lower()  # the same, faster
    return unicodedata.normalize("NFKC", text).casefold()


def words_of(text: str) -> list[str]:
    """The words of a normalised text."""
    return _WORD.findall(text)


def pieces_of(texts: str) -> tuple[Pieces, np.ndarray]:
    """The pieces of normalised texts, each followed by `END`, and how many are of each text.

    An empty text has one piece of no character.
    """
    codes = np.frombuffer(texts.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    is_word, is_end = _is_of_word()[codes], codes == ord(END)
    begins = np.append(True, is_end[:-1])  # of texts
    first_of_text = np.flatnonzero(begins)
    begins[1:] |= is_word[:-1] & ~is_word[1:] & ~is_end[1:]
    starts = np.flatnonzero(begins)
    bounds = np.append(starts, len(codes))
    sums, lengths = _joined(np.where(is_word, codes, 0), is_word, bounds=bounds)
    counts = np.diff(np.searchsorted(bounds, np.append(first_of_text, len(codes))))
    return Pieces(sums, lengths, is_apart=~(is_word | is_end)[starts]), counts


def hash_words(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each word, `[words]` uint64, equal if words are, and the piece it begins in."""
    bounds = np.append(np.flatnonzero(pieces.is_apart), len(pieces.sums))
    if bounds[0]:
        bounds = np.append(0, bounds)
    hashes, lengths = _joined(pieces.sums, pieces.lengths, bounds=bounds)
    hashes ^= hashes >> np.uint64(29)
    is_word = lengths > 0
    return hashes[is_word], bounds[:-1][is_word]


def iter_ngram_hashes(hashes: np.ndarray, *, lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """The hashes of the n-grams of each length, `[max(words - n + 1, 0)]` uint64."""
    powers, inverses = _powers(len(hashes) + 1)
    sums = _running(hashes * powers[: len(hashes)])
    for n in lengths:
        num = max(len(hashes) - n + 1, 0)
        yield (sums[n : n + num] - sums[:num]) * inverses[:num]


def _joined(
    sums: np.ndarray, lengths: np.ndarray, *, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Polynomials and lengths of what is between the bounds, from those of its parts.

    That of a text is the sum of p^i times the code of character i, modulo 2^64; that of a part is
    the difference of two such running sums, divided by p^start. p is odd and has an inverse.
    """
    places = np.zeros(len(sums) + 1, dtype=np.int64)
    np.cumsum(lengths, out=places[1:])
    powers, inverses = _powers(int(places[-1]) + 1)
    totals = _running(sums * powers[places[:-1]])[bounds]
    places = places[bounds]
    return np.diff(totals) * inverses[places[:-1]], np.diff(places)


def _running(values: np.ndarray) -> np.ndarray:
    """Sums of the values before each and of all, `[n + 1]` uint64."""
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.add.accumulate(values, out=sums[1:])
    return sums


@lru_cache(maxsize=1)
def _is_of_word() -> np.ndarray:
    r"""Whether each character is matched by `\w`, `[characters]` bool."""
    characters = np.arange(sys.maxunicode + 1, dtype=np.uint32).view("<U1")
    is_of_word = np.char.isalnum(characters)
    is_of_word[ord("_")] = True
    return is_of_word


def _powers(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the multiplier and its inverse modulo 2^64, from the exponent 0 on, `[number]` uint64."""
    return _power_table(max(18, number.bit_length()))


@lru_cache(maxsize=32)  # together twice the longest
def _power_table(bits: int) -> tuple[np.ndarray, np.ndarray]:
    powers = np.ones((2, 1 << bits), dtype=np.uint64)
    powers[0, 1:] = _MULTIPLIER
    powers[1, 1:] = pow(_MULTIPLIER, -1, 1 << 64)
    np.multiply.accumulate(powers, axis=1, out=powers)
    return powers[0], powers[1]
