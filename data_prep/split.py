"""Which split a document belongs to, decided by the document alone."""

from __future__ import annotations

import hashlib
import unicodedata
from functools import lru_cache

import numpy as np

from data_prep.reading.documents import Messages

SPLIT_HASH = "blake2b-64 of the text after NFKC, case folding and removal of ASCII white space"
_ASCII_SPACE = b" \t\n\r\x0b\x0c"
_ASCII_LOWER = bytes(range(256)).lower()
# Other characters are folded one stretch at a time, if there are few of them.
_MOST_OTHERS = 1 / 8
_GAP_BYTES = 16
_KEPT_BYTES = 32


def split_position(content: str | np.ndarray | Messages) -> float:
    """A number in [0, 1) that depends on the document alone, the same for near-equal texts.

    Case, width and white space are ignored: a tokenizer that drops them would otherwise put the
    same ids into both splits. The tokenizer does not matter, so a held-out document stays held
    out when the corpus is built for another model.
    """
    if isinstance(content, list):
        content = "\n".join(f"{turn['role']}\n{turn.get('content')}" for turn in content)
    key = _key(content) if isinstance(content, str) else content.astype("<u4").tobytes()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    # 53 bits, so that the quotient is exact and never rounds up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def why_one_is_not_divided(*, is_text: bool) -> str:
    """What to tell who has a single document and wants some held out."""
    reason = "1 document cannot be divided"
    if not is_text:
        return f"{reason}; give several"
    return (
        f"{reason}: a text file is one document; cut it into several files, or one JSON line a "
        "section (.jsonl)"
    )


def _key(text: str) -> bytes:
    """What is hashed of a text."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) > len(text):
        raw = _folded_in_stretches(raw)
    return raw.translate(_ASCII_LOWER, _ASCII_SPACE)


def _folded_in_stretches(raw: bytes) -> bytes:
    """A text after NFKC and case folding, but for ASCII, which both leave as it is or lower.

    No character combines with ASCII that comes after it, so a text may be cut before any ASCII
    character. For most texts in Latin letters this is several times as fast as the whole.
    """
    is_other = np.frombuffer(raw, dtype=np.uint8) >= 0x80
    if np.count_nonzero(is_other) > _MOST_OTHERS * len(raw):
        return _folded(raw)
    places = np.flatnonzero(is_other)
    gaps = np.flatnonzero(np.diff(places) > _GAP_BYTES)
    starts = np.append(places[0], places[gaps + 1]) - 1  # with what they may combine with
    ends = np.append(places[gaps], places[-1]) + 1
    pieces, done = [], 0
    for start, end in zip(np.maximum(starts, 0).tolist(), ends.tolist(), strict=True):
        stretch = raw[start:end]
        fold = _folded_before if len(stretch) <= _KEPT_BYTES else _folded
        pieces += [raw[done:start], fold(stretch)]
        done = end
    return b"".join([*pieces, raw[done:]])


def _folded(raw: bytes) -> bytes:
    text = raw.decode("utf-8", "surrogatepass")
    return unicodedata.normalize("NFKC", text).casefold().encode("utf-8", "surrogatepass")


_folded_before = lru_cache(maxsize=1 << 14)(_folded)
