"""The gate of a model by its type and keys."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from training.config.sections import Model
from training.model.gate import find_other_numbers

SEQUENCE_TOKENS = 64
FULL = {"layer_types": ["full_attention"] * 4, "num_hidden_layers": 4}


def gate(model_type: str, **keys: Any) -> str | None:
    """What it says of a configuration, none being refused by name before."""
    model = Model(config={"model_type": model_type, **keys})
    config = AutoConfig.for_model(model_type, **keys)
    return find_other_numbers(model, config, sequence_tokens=SEQUENCE_TOKENS)
