"""Encodes with the Hugging Face library, with which every faster way has to agree."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import tokenizers

from common.exits import without_ctrl_c
from data_prep.tokenizing.long_text import pieces_of_long_text

_CHARS_AT_ONCE = 1 << 18
"""A piece may be longer. Ctrl-C waits for what is under way."""


class Reference:
    """Ids of texts by a tokenizer of that library, with no special token added.

    Args:
        cuts_long_text: whether `pieces_of_long_text` encode to the same ids as the whole.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, cuts_long_text: bool) -> None:
        self._backend = backend
        self._cuts = cuts_long_text

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        # Piece by piece: a text of 200 MB at once would take 30 GB.
        cut = [pieces_of_long_text(text) if self._cuts else [text] for text in texts]
        pieces = [piece for of_text in cut for piece in of_text]
        encoded: list[np.ndarray] = []
        for group in _groups(pieces):
            # The end of the process would wait for the thread, where a second Ctrl-C would print
            # a traceback; and the thread is not to take it either.
            with without_ctrl_c():
                encoded += _thread_of(os.getpid()).submit(self._encode_pieces, group).result()
        of_pieces = iter(encoded)
        parts = [[next(of_pieces) for _ in of_text] for of_text in cut]
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]

    def _encode_pieces(self, pieces: Sequence[str]) -> list[np.ndarray]:
        return [self._encode_piece(piece) for piece in pieces]

    def _encode_piece(self, piece: str) -> np.ndarray:
        # The fast form keeps no character offsets; for one worker a batch gains nothing more.
        encoding = self._backend.encode_batch_fast([piece], add_special_tokens=False)[0]
        # By an array of C integers: twice as fast as by numpy alone.
        return np.frombuffer(array("I", encoding.ids), dtype=np.uint32)


def _groups(pieces: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    num_chars = 0
    for piece in pieces:
        group.append(piece)
        num_chars += len(piece)
        if num_chars >= _CHARS_AT_ONCE:
            yield group
            group, num_chars = [], 0
    if group:
        yield group


@lru_cache(maxsize=1)
def _thread_of(process: int) -> ThreadPoolExecutor:
    """Where the library works, a tenth faster than in the main thread: it allocates much, and a
    thread has a heap of its own. One does not survive a fork, so each process has one.
    """
    return ThreadPoolExecutor(1)
