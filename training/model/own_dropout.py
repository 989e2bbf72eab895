"""Dropout that a model's own configuration asks for: its draws would depend on the layout."""

from __future__ import annotations

import re
from collections.abc import Iterator

from transformers import PretrainedConfig

_RANDOM = re.compile("drop|jitter")
_OF_OTHER_HEADS = re.compile("classifier|summary")
"""Parts that a causal LM does not have."""


def own_dropout(config: PretrainedConfig) -> dict[str, float]:
    """The settings of random parts that are not 0, by name."""
    return {key: value for _, key, value in _settings(config)}


def disable_dropout(config: PretrainedConfig) -> None:
    """Set them to 0, and nothing else."""
    for part, key, _ in list(_settings(config)):
        setattr(part, key, 0.0)


def remedy(config: PretrainedConfig) -> str:
    """What to do about them, in the words of a refusal."""
    names = ", ".join(own_dropout(config)) or "its dropout"
    return f"set model.disable_dropout: true, which makes {names} 0"


def _settings(config: PretrainedConfig) -> Iterator[tuple[PretrainedConfig, str, float]]:
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from _settings(value)
        elif isinstance(value, float) and value and _is_random(key):
            yield config, key, value


def _is_random(key: str) -> bool:
    return bool(_RANDOM.search(key)) and not _OF_OTHER_HEADS.search(key)
