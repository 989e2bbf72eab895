"""The special ids of a model: those of its tokenizer, so that what it generates ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

_ENDS = "eos_token_id"
SPECIAL_KEYS = ("bos_token_id", _ENDS, "pad_token_id")
"""Of configurations, and attributes of tokenizers."""
_ANSWER = "An answer."

SpecialIds = dict[str, int | list[int] | None]


def special_ids(tokenizer: Any, own: Mapping[str, Any]) -> SpecialIds:
    """The tokenizer's ids, and of the model's own those that are special tokens, too.

    A class's defaults (1 and 2 for llama) are mere letters in most vocabularies.

    Args:
        own: what the model's files, or the recipe, say under the same keys. A chat model has
            several ends there: of a turn, and of a text.
    """
    special = _special(tokenizer)
    ids: SpecialIds = {}
    for key in SPECIAL_KEYS:
        first = getattr(tokenizer, key)
        kept = [id for id in _listed(own.get(key)) if id in special and id != first]
        found = kept if first is None else [first, *kept]
        ids[key] = found if key == _ENDS and len(found) > 1 else next(iter(found), None)
    return ids


def turn_end(tokenizer: Any) -> int | None:
    """The token behind an assistant's words in the chat template; None where there is none.

    A base's tokenizer ends texts with another one, so that an answer would not end.
    """
    if not tokenizer.chat_template:
        return None
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(talk, tokenize=False)
    except (TemplateError, ValueError):  # as of a template for calls of tools alone
        return None
    _, _, behind = text.rpartition(_ANSWER)
    special = _special(tokenizer)
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((id for id in ids if id in special), None)


def _special(tokenizer: Any) -> set[int]:
    marked = (id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return {*tokenizer.all_special_ids, *marked}


def _listed(value: Any) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
