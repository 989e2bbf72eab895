"""How many heads a model has, under the names that its family gives them."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PretrainedConfig

_KV_HEADS = ("num_key_value_heads", "num_kv_heads")


class Heads(NamedTuple):
    """Of one layer's attention."""

    queries: int
    keys: int
    """Of values there are as many."""


def heads_of_layers(config: PretrainedConfig) -> list[Heads]:
    """All that its layers have, each once."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    return list(dict.fromkeys(map(heads_of, layers)))


def heads_of(config: PretrainedConfig) -> Heads:
    """Of a text model, or of one of its layers where these differ.

    Example: Falcon 7B shares one head of keys, whatever its num_kv_heads says; GPT-2 has no
    setting for it, and as many as of queries.
    """
    queries = config.num_attention_heads
    if getattr(config, "new_decoder_architecture", False):  # Falcon 40B repeats its own
        return Heads(queries, queries)
    if getattr(config, "multi_query", False):
        return Heads(queries, 1)
    found = [getattr(config, name, None) for name in _KV_HEADS]
    return Heads(queries, next((number for number in found if number), queries))
