"""Byte-level BPE with `tiktoken`, several times faster, where it is provably equivalent.

Hugging Face merges, among neighbours listed as a merge, the pair listed first; tiktoken merges,
among neighbours whose bytes together are a token, the pair whose token has the lowest rank. Both
take the leftmost on ties. Call a token *sound* when its own bytes, encoded alone, give that
token back. In any text the merges inside a span that becomes one token are those of the span
encoded alone, in that order, since nothing outside takes part. It follows that

- a token that is not sound never appears, so tiktoken need not know it;
- a sound token always results from one and the same last merge, so ranking tokens by the place
  of that merge in the list gives each pair that can meet the priority that the list gives it;
- neighbours whose bytes make a sound token are its last pair: encoded alone it passes through
  the same two. So tiktoken never merges a pair that the list does not merge.

Plain conversion ranks tokens by id instead, which is wrong where two merges make one token.

With `ignore_merges` (Llama 3) a whole word that is a token is taken as it is, sound or not; so
does tiktoken. Tokens that are not sound then come last in rank. They are made only where no
sound pair is left, so never on the way to a sound token, and a text whose ids show none of them
was encoded as if they were not there. One that shows some is left to the reference library.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken
import tokenizers

from data_prep.tokenizing.long_text import KNOWN_PATTERNS, splitting_patterns

_BLOCK_CHARS = 4096


class NotTheSame(Exception):
    """Why tiktoken cannot replace this tokenizer."""


class TiktokenPath:
    """Encodes plain texts, except some that are left to the reference library."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Prove the two equivalent for a `tokenizer.json`, or raise `NotTheSame` and say why."""
        self.pattern = _splitting_pattern(settings)
        kind = (settings.get("normalizer") or {}).get("type")
        if kind not in (None, "NFC"):
            raise NotTheSame(f"it normalises with {kind}")
        self._normalizer = tokenizers.normalizers.NFC() if kind else None
        # Special tokens are plain text to us; the others are cut out before words are split.
        added = settings.get("added_tokens") or []
        self._cut_out = [token["content"] for token in added if not token["special"]]
        ids, self._num_sound, self._encoding = _ranked(settings["model"], pattern=self.pattern)
        self._id_of_rank = np.array(ids, dtype=np.uint32)

    def encode(self, text: str) -> np.ndarray | None:
        """Ids of a text, [n] uint32; None if this path cannot encode it."""
        if self._has_cut_out(text) or _has_endless_space(text):
            return None
        if self._normalizer is not None and not text.isascii():
            text = self._normalizer.normalize_str(text)
            if self._has_cut_out(text):
                return None
        ranks = np.array(self._encoding.encode_ordinary(text), dtype=np.int64)
        if (
            self._num_sound < len(self._id_of_rank)
            and len(ranks)
            and ranks.max() >= self._num_sound
        ):
            return None
        return self._id_of_rank[ranks]

    def _has_cut_out(self, text: str) -> bool:
        return any(token in text for token in self._cut_out)


def _has_endless_space(text: str) -> bool:
    """Whether there are 8,192 white-space characters in a row; a few more overflow its stack.

    Such a run contains a whole block, wherever blocks begin; one character rules out most blocks.
    """
    return any(
        text[start].isspace() and text[start : start + _BLOCK_CHARS].isspace()
        for start in range(0, len(text) - _BLOCK_CHARS, _BLOCK_CHARS)
    )


def _splitting_pattern(settings: dict[str, Any]) -> str:
    patterns = splitting_patterns(settings.get("pre_tokenizer") or {})
    if patterns is None or len(patterns) != 1 or patterns[0] not in KNOWN_PATTERNS:
        raise NotTheSame("it does not split words as GPT-2, Llama 3 or Qwen 2 do")
    return patterns[0]


def _ranked(model: dict[str, Any], *, pattern: str) -> tuple[list[int], int, tiktoken.Encoding]:
    """Ids by rank, the number of ranks of sound tokens, and the encoding over ranks."""
    if model.get("type") != "BPE":
        raise NotTheSame(f"its model is {model.get('type')}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise NotTheSame(f"it sets {name}")
    byte_of = byte_of_character()
    tokens = {
        text: token
        for text, token in model["vocab"].items()
        if text and all(character in byte_of for character in text)
    }
    singles = [character for character in byte_of if character in tokens]
    if len(singles) < 256:
        raise NotTheSame(f"its vocabulary has {len(singles)} of the 256 bytes")
    longer = [text for text in tokens if len(text) > 1]
    sound = _sound_tokens(longer, model=model)
    places = _last_merges(sound, model=model)
    by_rank = singles + sorted(sound, key=places.__getitem__)
    num_sound = len(by_rank)
    if model.get("ignore_merges"):
        by_rank += [text for text in longer if text not in places]
    ranks = {
        bytes(byte_of[character] for character in text): rank for rank, text in enumerate(by_rank)
    }
    encoding = tiktoken.Encoding(
        "corpus", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )
    return [tokens[text] for text in by_rank], num_sound, encoding


def _sound_tokens(texts: list[str], *, model: dict[str, Any]) -> list[str]:
    """Tokens whose own bytes, encoded alone and by merges only, give that token back."""
    bare: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": {**model, "ignore_merges": False},
        **dict.fromkeys(
            ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
        ),
    }
    reference = tokenizers.Tokenizer.from_str(json.dumps(bare))
    encoded = reference.encode_batch_fast(texts, add_special_tokens=False)
    vocab = model["vocab"]
    return [
        text for text, encoding in zip(texts, encoded, strict=True) if encoding.ids == [vocab[text]]
    ]


def _last_merges(texts: list[str], *, model: dict[str, Any]) -> dict[str, int]:
    """The position in the list of the merge that makes each sound token."""
    places: dict[tuple[str, str], int] = {}
    for place, merge in enumerate(model["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        places[first, second] = place
    makers: dict[str, list[int]] = {}
    for (first, second), place in places.items():
        makers.setdefault(first + second, []).append(place)
    return {
        text: makers[text][0] if len(makers[text]) == 1 else _last_merge(text, places=places)
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
