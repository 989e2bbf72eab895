"""The inspect verb in a terminal: samples and documents as readable text."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from data_prep.ledger import SPLITS
from data_prep.viewing.colours import step_of, terminal_codes, top_of_scale
from data_prep.viewing.selection import Piece, Selection, View
from data_prep.viewing.token_texts import texts_of

_RULE_COLUMNS = 96
_BOLD, _DIM, _RESET, _STRUCK = "\x1b[1;36m", "\x1b[2m", "\x1b[0m", "\x1b[9;31m"
# A corpus may hold anything: control sequences are shown, not sent to the terminal.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def show(selection: Selection, *, in_colour: bool) -> Iterator[str]:
    """Lines to print: samples of a pack, or documents."""
    view = View(selection)
    counts = ", ".join(f"{s} {view.corpus.num_documents(s):,} documents" for s in SPLITS)
    yield f"{selection.folder}: {counts}"
    shown = list(view)
    scores = [p.scores for item in shown for p in item.pieces if p.scores is not None]
    top = top_of_scale(scores)
    if scores and in_colour:
        yield _legend(top)
    for item in shown:
        if item.title:
            yield item.title
        for piece in item.pieces:
            yield _rule(piece.title, in_colour)
            yield _coloured(piece, view, top=top) if in_colour else _plain(piece, view)
        if item.num_padding:
            yield _rule(f"padding: {item.num_padding:,} tokens", in_colour)


def _plain(piece: Piece, view: View) -> str:
    return printable(view.tokenizer.decode(piece.ids.tolist()))


def _coloured(piece: Piece, view: View, *, top: float) -> str:
    """Background by entropy; masked out of the loss dim; dropped struck through."""
    if piece.scores is None and piece.in_loss.all() and not piece.is_dropped.any():
        return _plain(piece, view)
    codes, parts = terminal_codes(), []
    scores = np.full(len(piece.ids), np.nan) if piece.scores is None else piece.scores
    for text, score, in_loss, is_dropped in zip(
        texts_of(piece.ids, view.tokenizer),
        scores.tolist(),
        piece.in_loss.tolist(),
        piece.is_dropped.tolist(),
        strict=True,
    ):
        step = step_of(score, top=top)
        code = "" if step is None else codes[step]
        code += ("" if in_loss else _DIM) + (_STRUCK if is_dropped else "")
        # A colour that runs past the end of a line would fill it.
        text = printable(text).replace("\n", f"{_RESET}\n{code}") if code else printable(text)
        parts.append(f"{code}{text}{_RESET}" if code else text)
    return "".join(parts)


def _legend(top: float) -> str:
    blocks = "".join(f"{code}  " for code in terminal_codes())
    return f"entropy 0 {blocks}{_RESET} {top:.1f} nats or more"


def printable(text: str) -> str:
    """The text with control characters spelt out; newline and tab stay."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def _rule(text: str, in_colour: bool) -> str:
    line = f"── {text} ".ljust(_RULE_COLUMNS, "─")
    colour = _DIM if text.startswith("padding") else _BOLD
    return f"{colour}{line}{_RESET}" if in_colour else line
