"""Where a long text may be cut so that its parts encode to the same ids as the whole."""

from __future__ import annotations

import re
from typing import Any

# Encoding needs about 150 bytes of memory for each byte of text, all at once.
LONG_TEXT_CHARS = 1 << 18

# Every pattern below ends a pre-token where a line ends, if a single newline is followed by a
# character, or by spaces and a letter or digit; the last space belongs to what comes after it:
# "x\n" + "y" and "x\n   " + " y". A longer run is matched as a whole ("\n\ny" is not
# "\n" + "\ny") and is not cut.
SAFE_CUT = re.compile(r"(?<=\S)\n(?: *(?= \w)|(?=\S))")

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
KNOWN_PATTERNS = frozenset({GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN})


def is_safe_to_cut(tokenizer: dict[str, Any]) -> bool:
    """Whether cuts change nothing: for byte-level BPE with one of the patterns above."""
    normalizer = tokenizer.get("normalizer") or {}
    if (tokenizer.get("model") or {}).get("type") != "BPE":
        return False
    # NFC never composes a character with a newline before it.
    if normalizer.get("type", "NFC") != "NFC":
        return False
    # Special tokens are plain text to us; other added tokens are taken out before the pattern
    # applies, so none may span a cut, take white space before it, or begin right after its space.
    for token in tokenizer.get("added_tokens") or []:
        content = token["content"]
        if not token["special"] and (
            token["lstrip"] or "\n" in content or re.match(r"\s|\w", content)
        ):
            return False
    patterns = splitting_patterns(tokenizer.get("pre_tokenizer") or {})
    return bool(patterns) and all(pattern in KNOWN_PATTERNS for pattern in patterns or [])


def splitting_patterns(pre_tokenizer: dict[str, Any]) -> list[str] | None:
    """Patterns by which a byte-level tokenizer splits words, in turn; None for any other kind."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *splits, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if any(
        step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert")
        for step in splits
    ):
        return None
    patterns = [step.get("pattern", {}).get("Regex") for step in splits]
    return [*patterns, GPT2_PATTERN] if last.get("use_regex", True) else patterns


def pieces_of_long_text(text: str, *, piece_chars: int = LONG_TEXT_CHARS) -> list[str]:
    """The text in parts of at least `piece_chars`, except the last; a short text stays whole."""
    pieces, start = [], 0
    while len(text) - start > piece_chars:
        cut = SAFE_CUT.search(text, start + piece_chars)
        if cut is None:
            break
        pieces.append(text[start : cut.end()])
        start = cut.end()
    return [*pieces, text[start:]]
