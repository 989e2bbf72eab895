"""The words of documents from their ids: most text is never decoded."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data_prep.cleaning.words import END, Pieces, normalised, pieces_of
from data_prep.tokenizing.tokenizer import Tokenizer


class PiecesOfTokens:
    """Cuts documents into pieces, by a table of the tokens that are ASCII and of one piece.

    The characters of other tokens may be normalised together with their neighbours, but never
    across the beginning of an ASCII character. So a run of such tokens is decoded, with the token
    before it, and cut as a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        spelling = tokenizer.spelling()
        self._has_table = spelling is not None
        if spelling is None:
            return
        contents = [content.replace(END.encode(), b" ") for content in spelling.tolist()]
        contents += [b""] * (tokenizer.vocab_size - len(contents))
        is_ascii = np.array([content.isascii() and content != b"" for content in contents])
        texts = [c.decode() if ok else "" for c, ok in zip(contents, is_ascii, strict=True)]
        pieces, counts = cut(texts)
        self._spelling = np.array(contents, dtype=object)
        self._is_other = ~is_ascii | (counts > 1)
        self._table = Pieces(*(part[np.cumsum(counts) - counts] for part in pieces))

    def of_documents(self, ids: np.ndarray, offsets: np.ndarray) -> tuple[Pieces, np.ndarray]:
        """The pieces of documents, and `[documents]` the first of each.

        Args:
            ids: `[T]`, one document after another.
            offsets: `[documents + 1]`, where each begins and the last ends.
        """
        if self._has_table:
            pieces, starts = self._by_table(ids, offsets)
        else:
            documents = np.split(ids, offsets[1:-1])
            pieces, counts = cut(self._tokenizer.decode(each) for each in documents)
            starts = np.cumsum(counts) - counts
        pieces.is_apart[starts[starts < len(pieces.is_apart)]] = True
        return pieces, starts

    def _by_table(self, ids: np.ndarray, offsets: np.ndarray) -> tuple[Pieces, np.ndarray]:
        is_decoded = self._is_other[ids]
        begins_document = np.zeros(len(ids) + 1, dtype=bool)
        begins_document[offsets] = True
        is_decoded[:-1] |= is_decoded[1:] & ~begins_document[1:-1]
        rows = np.flatnonzero(is_decoded)
        if not len(rows):
            return Pieces(*(part[ids] for part in self._table)), offsets[:-1]
        # Runs of such rows: each row that does not follow the one before, in the same document.
        begins = np.flatnonzero((np.diff(rows, prepend=-2) > 1) | begins_document[rows])
        pieces, counts = self._cut_runs(ids[rows], begins=begins)
        # Pieces that there are more than tokens, up to each run and in all.
        more = np.append(0, np.cumsum(counts - np.diff(begins, append=len(rows))))
        begins_of_runs = rows[begins] + more[:-1]
        within = np.arange(len(pieces.sums)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(begins_of_runs, counts) + within
        is_token = np.ones(len(ids) + more[-1], dtype=bool)
        is_token[places] = False
        # Which piece of the table, or of the runs behind it.
        which = np.empty(len(is_token), dtype=np.int64)
        which[is_token] = ids[~is_decoded]
        which[places] = np.arange(len(pieces.sums)) + len(self._table.sums)
        parts = zip(self._table, pieces, strict=True)
        starts = offsets[:-1] + more[np.searchsorted(rows[begins], offsets[:-1])]
        return Pieces(*(np.concatenate(part)[which] for part in parts)), starts

    def _cut_runs(self, ids: np.ndarray, *, begins: np.ndarray) -> tuple[Pieces, np.ndarray]:
        """The pieces of the text of each run of ids, and how many each has."""
        contents = np.insert(self._spelling[ids], begins[1:], END.encode()).tolist()
        text = b"".join(contents).decode("utf-8", "replace")
        return pieces_of(normalised(f"{text}{END}"))


def cut(texts: Iterable[str]) -> tuple[Pieces, np.ndarray]:
    """The pieces of texts, and how many are of each text."""
    return pieces_of(normalised("".join([f"{text.replace(END, ' ')}{END}" for text in texts])))
