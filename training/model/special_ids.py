"""The special ids of a model: those of its tokenizer, so that what it generates ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ENDS = "eos_token_id"
SPECIAL_KEYS = ("bos_token_id", _ENDS, "pad_token_id")
"""Of configurations, and attributes of tokenizers."""

SpecialIds = dict[str, int | list[int] | None]


def special_ids(tokenizer: Any, own: Mapping[str, Any]) -> SpecialIds:
    """The tokenizer's ids, and of the model's own those that are special tokens, too.

    A class's defaults (1 and 2 for llama) are mere letters in most vocabularies.

    Args:
        own: what the model's files, or the recipe, say under the same keys. A chat model has
            several ends there: of a turn, and of a text.
    """
    special = {
        *tokenizer.all_special_ids,
        *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
    ids: SpecialIds = {}
    for key in SPECIAL_KEYS:
        first = getattr(tokenizer, key)
        kept = [id for id in _listed(own.get(key)) if id in special and id != first]
        found = kept if first is None else [first, *kept]
        ids[key] = found if key == _ENDS and len(found) > 1 else next(iter(found), None)
    return ids


def _listed(value: Any) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
