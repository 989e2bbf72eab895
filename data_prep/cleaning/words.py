"""Words of texts, ignoring case, width and punctuation, and hashes of all of them at once."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache

import numpy as np

_WORD = re.compile(r"\w+")
_MULTIPLIER = 0x9E3779B97F4A7C15


def normalised(text: str) -> str:
    """What words are found in."""
    if text.isascii():
        return text.lower()  # the same, faster
    return unicodedata.normalize("NFKC", text).casefold()


def words_of(text: str) -> list[str]:
    """The words of a normalised text."""
    return _WORD.findall(text)


def hash_words(text: str) -> np.ndarray:
    """A hash of each word of a normalised text, `[words]` uint64; equal if words are.

    A polynomial in the codes of its characters, modulo 2^64. With p^i at character i of the text, a
    word's is the difference of two running sums, divided by p^start; p is odd and has an inverse.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    is_word = _is_of_word()[codes]
    starts, ends = np.flatnonzero(np.diff(is_word, prepend=False, append=False)).reshape(-1, 2).T
    powers, inverses = _powers(max(1 << 12, 1 << len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.multiply(codes, powers[: len(codes)], out=sums[1:])
    np.add.accumulate(sums, out=sums)
    hashes = (sums[ends] - sums[starts]) * inverses[starts]
    hashes ^= hashes >> np.uint64(29)
    return hashes


@lru_cache(maxsize=1)
def _is_of_word() -> np.ndarray:
    r"""Whether each character is matched by `\w`, `[characters]` bool."""
    is_of_word = np.array(
        [char.isalnum() for char in map(chr, range(sys.maxunicode + 1))], dtype=bool
    )
    is_of_word[ord("_")] = True
    return is_of_word


@lru_cache(maxsize=32)  # by length: together twice the longest
def _powers(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the multiplier and its inverse modulo 2^64, from the exponent 0 on, `[number]` uint64."""
    powers = np.ones((2, number), dtype=np.uint64)
    powers[0, 1:] = _MULTIPLIER
    powers[1, 1:] = pow(_MULTIPLIER, -1, 1 << 64)
    np.multiply.accumulate(powers, axis=1, out=powers)
    return powers[0], powers[1]
