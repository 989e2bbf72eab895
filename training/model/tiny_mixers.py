"""Narrow copies of the mixers of hybrids: mamba heads and states, chunks, delta nets' heads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

_HEADS = ("mamba_n_heads", "n_mamba_heads", "mamba_num_heads")
_HEAD_SIZES = ("mamba_d_head", "mamba_headdim", "mamba_head_dim")
_EXPANSIONS = ("mamba_expand", "expand")
_HEAD, _STATE, _CHUNK = 8, 16, 8
_STATES = re.compile(r"d_state$|state_size$|^linear_(key|value)_head_dim$")
_CHUNKS = re.compile(r"^(mamba_)?chunk_size$")
"""Results do not depend on them; a document is then in several."""


def narrow_mixers(config: PretrainedConfig) -> None:
    """After the hidden size: mamba's heads still fill its inner width."""
    for key, value in list(vars(config).items()):
        if isinstance(value, int) and _STATES.search(key):
            setattr(config, key, _STATE)
        elif isinstance(value, int) and _CHUNKS.search(key):
            setattr(config, key, _CHUNK)
    heads, size, expansion = (_first(config, keys) for keys in (_HEADS, _HEAD_SIZES, _EXPANSIONS))
    if not (heads and size):
        return
    setattr(config, size, _HEAD)
    if getattr(config, "mamba_d_ssm", None):  # Falcon-H1's own inner width
        config.mamba_d_ssm = getattr(config, heads) * _HEAD
    elif expansion:
        hidden: Any = config.hidden_size
        setattr(config, heads, int(getattr(config, expansion) * hidden) // _HEAD)


def _first(config: PretrainedConfig, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if isinstance(vars(config).get(key), (int, float))), None)
