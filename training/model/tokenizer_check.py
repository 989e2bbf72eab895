"""What transformers makes of a tokenizer's files, against the ids that a corpus has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from training.config.sections import Model


@dataclass(frozen=True)
class ExpectedTokens:
    """What the tokenizer of a corpus does, by the library that built the corpus."""

    texts: tuple[tuple[str, tuple[int, ...]], ...]
    """Each with its ids, none added."""
    prefix: tuple[int, ...]
    """What begins every document."""
    specials: dict[str, tuple[str, int]]
    """By role (bos, eos, pad), those that there are: the token and its id."""


def load_tokenizer(folder: Path, model: Model) -> Any:
    """As a user of the folder loads it.

    Raises:
        ValueError: when transformers cannot.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # of many kinds: tokenizers, sentencepiece, a missing import
        raise ValueError(f"transformers cannot load it: {' '.join(str(error).split())}") from None


def find_other_tokens(tokenizer: Any, expected: ExpectedTokens) -> str | None:
    """The first text, or special token, that differs from the corpus; None where all agree.

    Classes of transformers have rules of their own, and some ignore those of `tokenizer.json`.
    """
    try:
        return _find_difference(tokenizer, expected)
    except Exception as error:  # tokenizers raises a bare Exception
        return f"as {type(tokenizer).__name__} it fails: {' '.join(str(error).split())}"


def _find_difference(tokenizer: Any, expected: ExpectedTokens) -> str | None:
    for text, ids in expected.texts:
        # in a corpus, the name of a special token is text like any other
        found = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if tuple(found) != ids:
            return (
                f"as {type(tokenizer).__name__} it gives other ids for {text[:60]!r} "
                f"({len(found)} tokens; the corpus has {len(ids)})"
            )
    for role in ("bos", "eos"):
        if role in expected.specials:
            token, id = expected.specials[role]
            found_id = getattr(tokenizer, f"{role}_token_id")
            if found_id != id:
                return f"its {role} has the id {found_id}; in the corpus it is {token!r}, {id}"
    text, ids = expected.texts[0]
    whole = tuple(tokenizer.encode(text))
    if whole[: len(expected.prefix) + len(ids)] != (*expected.prefix, *ids):
        return (
            f"it begins a text with {_before(whole, ids)}, the corpus a document with "
            f"{list(expected.prefix)}"
        )
    return None


def _before(whole: tuple[int, ...], ids: tuple[int, ...]) -> list[int]:
    starts = (i for i in range(len(whole)) if whole[i : i + len(ids)] == ids)
    return list(whole[: next(starts, len(whole))])
