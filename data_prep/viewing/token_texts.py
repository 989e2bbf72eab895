"""The text that each token adds, and the bytes of tokens that are partial characters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sentencepiece

from data_prep.tokenizing.gigatoken_path import byte_of_character
from data_prep.tokenizing.settings import HF_NAME, SENTENCEPIECE_NAME
from data_prep.tokenizing.tokenizer import Tokenizer, kind_of

# Tokens may end within one character and begin within the next, again and again.
_MOST_TOKENS_OF_A_CHARACTER = 12
_BYTE_OF_CHARACTER = byte_of_character()


def texts_of(ids: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The text that each token adds; "" for one that only begins a character.

    A character may span several tokens: then the last one gets it. sentencepiece drops a blank
    at the start of what it decodes, so a token is decoded after the one before it.
    """
    texts: list[str] = []
    before: list[int] = []
    pending: list[int] = []
    so_far: list[str] = []  # text of the pending tokens, up to each
    for token in ids.tolist():
        pending.append(token)
        so_far.append(_text_after(before, pending, tokenizer))
        # A partial character can only be at the end.
        is_partial = so_far[-1].endswith("\ufffd")
        if is_partial and len(pending) < _MOST_TOKENS_OF_A_CHARACTER:
            continue
        texts += _added(so_far)
        before, pending, so_far = [] if is_partial else pending[-1:], [], []
    return texts + _added(so_far)


def _added(so_far: list[str]) -> list[str]:
    """What each token adds to the last text; "" where a later one changes it.

    Example: "?", "?", "日" give "", "", "日"; a mark that stays was in the document, so "?",
    "? a" give "?", " a".
    """
    texts, shown = [], 0
    for text in so_far:
        is_kept = len(text) >= shown and so_far[-1].startswith(text)
        texts.append(text[shown:] if is_kept else "")
        shown += len(texts[-1])
    return texts


def part_bytes(folder: Path) -> dict[int, bytes]:
    """Bytes of the tokens that are not whole characters, by id, for a tokenizer's folder."""
    if kind_of(folder) == "sentencepiece":
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_NAME))
        names = {model.id_to_piece(i): i for i in range(model.vocab_size()) if model.is_byte(i)}
        is_byte_level = False
    else:
        settings = json.loads((folder / HF_NAME).read_bytes())
        vocab = settings["model"].get("vocab", {})
        # Unigram lists its tokens with their scores, in the order of their ids.
        names = vocab if isinstance(vocab, dict) else {row[0]: i for i, row in enumerate(vocab)}
        is_byte_level = '"ByteLevel"' in json.dumps(settings.get("decoder"))
    found = {}
    for name, token in names.items():
        raw = _bytes_of_name(name, is_byte_level=is_byte_level)
        if "\ufffd" in raw.decode("utf-8", "replace"):
            found[token] = raw
    return found


def _bytes_of_name(name: str, *, is_byte_level: bool) -> bytes:
    if is_byte_level:
        return bytes(_BYTE_OF_CHARACTER.get(character, 0) for character in name)
    # Byte fallback: <0xE6>.
    is_byte = len(name) == 6 and name.startswith("<0x") and name.endswith(">")
    return bytes.fromhex(name[3:5]) if is_byte else b""


def _text_after(before: list[int], ids: list[int], tokenizer: Tokenizer) -> str:
    if not before:
        return tokenizer.decode(ids)
    head, whole = tokenizer.decode(before), tokenizer.decode(before + ids)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids)
