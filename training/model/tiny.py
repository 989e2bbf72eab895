"""A narrow copy of a configuration with layers of each of its kinds, and plain models of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from training.config.sections import Model
from training.model.layers import decoder_layers
from training.model.length_rope import LENGTH_DEPENDENT
from training.model.tiny_mixers import narrow_mixers

VOCAB_SIZE = 257
_HIDDEN, _HEAD, _INNER = 64, 16, 32
_MIN_LAYERS = 2
_WINDOW = 5
"""Of a model whose windows are shorter than a sample: shorter than a document of a tiny one."""
_ORIGINAL = 8
"""Positions of a RoPE that depends on the length, where a document may have more."""
_UNLIMITED = 4096
"""Of a model whose windows are not."""

_PLAIN_ATTENTION = {"falcon": "sdpa"}
"""By family, where "eager" is wrong: Falcon's adds ALiBi twice (transformers 5.24)."""
_HEAD_SIZES = ("head_dim", "v_head_dim")
"""Settings without which the size of a head follows from the hidden size."""
_INNER_SIZES = re.compile(r"intermediate_size|ffn_dim|ffn_hidden_size|^n_inner$|lora_rank$")
_WINDOWS = re.compile(r"window|swa|attention_chunk_size")
_NO_WINDOWS = re.compile(r"pattern|layers|rope|theta|heads|head_dim")
_OWN_NUMBER = re.compile(r"layer_?(idx|id|index|number|num)$")
"""Attributes of a layer that say which one it is."""


def tiny_config(
    model: Model, config: PretrainedConfig, *, sequence_tokens: int
) -> PretrainedConfig:
    """The same architecture in fp32: its own heads, multipliers, caps, biases, router and RoPE.

    Narrow, with a small vocabulary, and with the first layers only, as many as it takes to have
    one of each kind. Windows that a sample of `sequence_tokens` may exceed become shorter than the
    documents of a comparison, other windows never matter.
    """
    tiny = copy.deepcopy(config)
    for part in _parts(tiny):
        _narrow(part, sequence_tokens=sequence_tokens)
    tiny.dtype = torch.float32
    text = tiny.get_text_config()
    _keep_layers(text, _num_needed(model, tiny))
    return tiny


def one_layer_config(config: PretrainedConfig) -> PretrainedConfig:
    """The first layer in its own size and dtype, with a small vocabulary."""
    short = copy.deepcopy(config)
    for part in _parts(short):
        _narrow_vocabulary(part)
    _keep_layers(short.get_text_config(), 1)
    return short


def plain_model(
    model: Model, config: PretrainedConfig, *, attention: str | None = None
) -> PreTrainedModel:
    """By transformers alone, newly initialised and whole on this rank.

    Args:
        attention: by default that of transformers which is exact.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # it may outlive its engine
    lm = AutoModelForCausalLM.from_config(
        copy.deepcopy(config),  # a model keeps it, and the kind of its attention in it
        attn_implementation=attention or _PLAIN_ATTENTION.get(config.model_type, "eager"),
        trust_remote_code=model.trust_remote_code,
    )
    assert isinstance(lm, PreTrainedModel)
    lm.get_input_embeddings().padding_idx = None  # type: ignore[assignment]  # as in training
    return lm


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def _narrow(config: PretrainedConfig, *, sequence_tokens: int) -> None:
    _narrow_heads(config)
    narrow_mixers(config)
    _narrow_rope(config, sequence_tokens=sequence_tokens)
    for key, value in list(vars(config).items()):
        if _INNER_SIZES.search(key):
            setattr(config, key, _with_numbers(value, _INNER))
        elif _WINDOWS.search(key) and not _NO_WINDOWS.search(key):
            setattr(config, key, _narrow_windows(value, sequence_tokens=sequence_tokens))
    _narrow_vocabulary(config)


def _narrow_vocabulary(config: PretrainedConfig) -> None:
    for key, value in list(vars(config).items()):
        if "vocab_size" in key:
            setattr(config, key, _with_numbers(value, VOCAB_SIZE))
        elif key in ("pad_token_id", "bos_token_id", "eos_token_id") and isinstance(value, int):
            setattr(config, key, min(value, VOCAB_SIZE - 1))


def _narrow_heads(config: PretrainedConfig) -> None:
    """As many heads as before; their size only where it follows from the hidden size, or equals it.

    Some families rely on heads that fill the hidden size, whatever their configuration allows.
    """
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or not getattr(config, "hidden_size", None):
        return
    if rotated := vars(config).get("rotary_dim"):  # GPT-J's, of a head
        config.rotary_dim = min(rotated * _HEAD * heads // config.hidden_size, _HEAD)
    has_rotary_part = vars(config).get("qk_rope_head_dim")  # which is then the head_dim, too
    fills = vars(config).get("head_dim") == config.hidden_size / heads
    if fills and not has_rotary_part:
        config.head_dim = _HEAD
        config.hidden_size = _HEAD * heads
    else:
        has_own_sizes = any(vars(config).get(key) for key in _HEAD_SIZES)
        config.hidden_size = _HIDDEN if has_own_sizes else _HEAD * heads


def _narrow_rope(config: PretrainedConfig, *, sequence_tokens: int) -> None:
    """Of a RoPE that depends on a document's length, after the heads: both kinds of documents."""
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *rope.values()):
        if not isinstance(each, dict) or each.get("rope_type") not in LENGTH_DEPENDENT:
            continue
        original = each.get("original_max_position_embeddings") or config.max_position_embeddings
        tiny = _ORIGINAL if original < sequence_tokens else _UNLIMITED
        # the ratio of both lengths scales the embeddings
        config.max_position_embeddings = config.max_position_embeddings * tiny // original
        if each["rope_type"] == "longrope":
            each["original_max_position_embeddings"] = tiny
            if hasattr(config, "original_max_position_embeddings"):  # Phi-3's, which comes first
                config.original_max_position_embeddings = tiny
            head = getattr(config, "head_dim", None) or (
                config.hidden_size // config.num_attention_heads
            )
            pairs = int(head * each.get("partial_rotary_factor", 1.0)) // 2
            for key in ("short_factor", "long_factor"):
                each[key] = [each[key][n * len(each[key]) // pairs] for n in range(pairs)]


def _with_numbers(value: Any, number: int) -> Any:
    """In place of each whole number in it."""
    if isinstance(value, (list, tuple)):
        return [_with_numbers(each, number) for each in value]
    return number if isinstance(value, int) and not isinstance(value, bool) and value else value


def _narrow_windows(value: Any, *, sequence_tokens: int) -> Any:
    if isinstance(value, (list, tuple)):
        return [_narrow_windows(each, sequence_tokens=sequence_tokens) for each in value]
    bites = isinstance(value, int) and value < sequence_tokens
    return _with_numbers(value, _WINDOW if bites else _UNLIMITED)


def _per_layer(config: PretrainedConfig) -> dict[str, list[Any]]:
    """The settings that have one value for each layer."""
    num_layers = config.num_hidden_layers
    return {
        key: list(value)
        for key, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == num_layers
    }


def _keep_layers(config: PretrainedConfig, num_layers: int) -> None:
    """The first ones."""
    lists = _per_layer(config)
    if shared := getattr(config, "num_kv_shared_layers", 0):  # the last ones
        own = config.num_hidden_layers - shared
        config.num_kv_shared_layers = max(0, num_layers - own)
    if getattr(config, "is_heterogeneous", False):
        overrides = config._heterogeneity_spec.per_layer_overrides
        for layer in [layer for layer in overrides if layer >= num_layers]:
            del overrides[layer]
    config.num_hidden_layers = num_layers
    for key, values in lists.items():
        setattr(config, key, values[:num_layers])


def _num_needed(model: Model, config: PretrainedConfig) -> int:
    """How many of the first layers have among them one of each kind that the model has."""
    with torch.device("meta"):  # no memory, no numbers
        lm = plain_model(model, config)
    settings = _per_layer(config.get_text_config()).values()
    kinds = [
        (_kind(layer), [values[number] for values in settings])
        for number, layer in enumerate(decoder_layers(lm))
    ]
    firsts = [kinds.index(kind) for kind in kinds]
    return min(len(kinds), max(_MIN_LAYERS, max(firsts) + 1))


def _kind(layer: nn.Module) -> list[Any]:
    """Modules, their settings and the shapes of their weights; of fractions only that they are."""
    return [
        (
            path,
            type(module).__name__,
            {name: _setting(value) for name, value in vars(module).items() if _counts(name, value)},
            [(name, weight.shape) for name, weight in module.named_parameters(recurse=False)],
        )
        for path, module in layer.named_modules()
    ]


def _counts(name: str, value: Any) -> bool:
    is_setting = value is None or isinstance(value, (bool, int, float, str))
    return is_setting and not name.startswith("_") and not _OWN_NUMBER.search(name)


def _setting(value: Any) -> Any:
    return "a fraction" if isinstance(value, float) else value
