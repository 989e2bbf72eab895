"""Refuses models that the engine cannot train, with the key, the value and what would work."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
)
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin

from common.hints import did_you_mean
from training.config.layout import check_head_counts
from training.model.heads import heads_of_layers
from training.model.own_dropout import remedy

_NOT_OF_THE_MODEL = {"torch_dtype", "name_or_path", "attn_implementation", "output_attentions"}
"""Keys of published configurations that change no number, or that training sets itself."""
_OVERRIDDEN_BY = {
    "sliding_window": "or set use_sliding_window: true",
    "rope_theta": "or set it in rope_parameters alone",
    "rope_parameters": "or rope_scaling, which replaces it",
}
_ALWAYS_IN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
"""Of the last, whether a model reads it, the gate tries."""
_LAYERS_APART = ("gemma4_text", "gemma4_unified_text")
"""Families that may have layers of different sizes."""
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def refuse_unknown_keys(given: dict[str, Any]) -> None:
    """transformers keeps a misspelt key as an attribute that nothing reads."""
    config_class = CONFIG_MAPPING[given["model_type"]]
    known = {
        **config_class().to_dict(),
        **PretrainedConfig().to_dict(),
        **config_class.attribute_map,
    }
    for key in sorted(given.keys() - known.keys()):
        if not _is_read(key, config_class):
            hint = did_you_mean(key, known)
            raise ValueError(f"config.{key} is not a key of {given['model_type']}{hint}")


def _is_read(key: str, config_class: type[PretrainedConfig]) -> bool:
    """Whether transformers takes a key that no class declares: `rope_theta`, qwen2's `head_dim`.

    Published configurations are full of them, and only the code that reads them knows.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)
    readers = [config_class, PretrainedConfig, RotaryEmbeddingConfigMixin]
    readers += [model_class] if model_class else []
    read = re.compile(
        rf"""config\.{re.escape(key)}\b|(?:getattr|hasattr)\(\w+, "{re.escape(key)}\""""
        rf"""|kwargs\.(?:pop|get)\("{re.escape(key)}\""""
    )
    sources = {inspect.getsource(sys.modules[reader.__module__]) for reader in readers}
    return any(read.search(source) for source in sources)


def refuse_idle_keys(given: dict[str, Any], config: PretrainedConfig) -> None:
    """transformers drops a key without a word where another one overrides it.

    Args:
        config: what it made of the given keys.
    """
    if getattr(config, "is_heterogeneous", False):  # which keeps keys by layers, and is refused
        return
    for key, value in sorted(given.items()):
        if _is_idle(key, given, config):
            remedy = _OVERRIDDEN_BY.get(key, "or change the key that overrides it")
            raise ValueError(
                f"config.{key} {value!r} has no effect: of these keys together transformers makes "
                f"{key} {_made_of(key, config)!r}; remove it, {remedy}"
            )
    for key in ("rope_parameters", "rope_scaling"):
        _refuse_idle_rope_keys(key, given.get(key) or {}, config)


def _is_idle(key: str, given: dict[str, Any], config: PretrainedConfig) -> bool:
    """Neither its value is there, nor does the configuration change without it, or with another."""
    value = given[key]
    is_common = key in PretrainedConfig().to_dict() or key in _NOT_OF_THE_MODEL
    # published configurations have a window next to the key that says that there is none
    is_off = key == "sliding_window" and given.get("use_sliding_window") is False
    if value is None or is_common or is_off or _holds(_made_of(key, config), value):
        return False
    made = config.to_dict()
    without = {other: each for other, each in given.items() if other != key}
    return _make(without) == made and (
        not isinstance(value, (bool, int, float)) or _make(given | {key: _another(value)}) == made
    )


def _made_of(key: str, config: PretrainedConfig) -> Any:
    """Keys of RoPE that once stood alone have moved into rope_parameters."""
    rope = getattr(config, "rope_parameters", None) or {}
    return getattr(config, key, rope.get(key))


def _holds(found: Any, value: Any) -> bool:
    if isinstance(found, PretrainedConfig):  # a part, with keys of its own
        return True
    if isinstance(value, dict):
        return isinstance(found, dict) and all(_holds(found.get(k), v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return isinstance(found, (list, tuple)) and list(found) == list(value)
    return bool(found == value)


def _make(keys: dict[str, Any]) -> dict[str, Any] | None:
    """What transformers makes of them; None where it refuses them."""
    try:
        made: dict[str, Any] = AutoConfig.for_model(**copy.deepcopy(keys)).to_dict()
    except Exception:  # of many kinds
        return None
    return made


def _another(value: float) -> float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 or 0.5


def _refuse_idle_rope_keys(name: str, given: dict[str, Any], config: PretrainedConfig) -> None:
    """A `factor` without a rope_type, which transformers then takes for the plain one."""
    kinds = [each for each in given.values() if isinstance(each, dict)]  # one of each layer type
    own = getattr(type(config)(), "rope_parameters", None) or {}
    for rope in kinds or [given]:
        rope_type = str(rope.get("rope_type", rope.get("type", "default")))
        for key in sorted(rope.keys() - own.keys() - _ALWAYS_IN_ROPE):
            if not _reads_of_rope(key, rope_type, config):
                readers = [
                    each
                    for each in sorted(ROPE_INIT_FUNCTIONS)
                    if _reads_of_rope(key, each, config)
                ]
                hint = (
                    f"of those that do, take {' or '.join(readers)}"
                    if readers
                    else "none does, so check its name"
                )
                raise ValueError(
                    f"config.{name}.{key} {rope[key]!r} has no effect: the rope_type "
                    f"{rope_type!r} does not read it; {hint}, or remove it"
                )


def _reads_of_rope(key: str, rope_type: str, config: PretrainedConfig) -> bool:
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    reader = ROPE_INIT_FUNCTIONS.get(rope_type)
    modules = [type(config).__module__] + ([model_class.__module__] if model_class else [])
    sources = [inspect.getsource(sys.modules[module]) for module in modules]
    sources += [inspect.getsource(reader)] if reader else []
    return any(f'"{key}"' in source for source in sources)


def refuse_other_shapes(config: PretrainedConfig) -> None:
    """Not a decoder of our kind, or one that cannot be built: transformers accepts sizes of 0."""
    if getattr(config, "is_heterogeneous", False) and config.model_type not in _LAYERS_APART:
        raise ValueError(
            f"model: {config.model_type} has layers of different sizes (per_layer_config), which "
            "are not supported"
        )
    for key in _SIZES:
        if getattr(config, key, None) is None or getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"model: {config.model_type} is not supported; it must be a decoder with "
                f"{', '.join(_SIZES)}, such as llama, mistral or qwen3"
            )
    for key in (*_SIZES, "num_key_value_heads", "intermediate_size", "head_dim"):
        size = vars(config).get(key)
        if isinstance(size, int) and size < 1:
            raise ValueError(f"model: {key} is {size}; expected a number of at least 1")
    for heads in heads_of_layers(config):
        if heads.queries % heads.keys:
            raise ValueError(
                f"model: num_attention_heads {heads.queries} is not a multiple of "
                f"num_key_value_heads {heads.keys}"
            )
    activation = getattr(config, "hidden_act", None)
    if activation is not None and activation not in ACT2FN:
        hint = did_you_mean(activation, ACT2FN.keys(), most=3, cutoff=0.0)
        raise ValueError(f"model: hidden_act {activation!r} is unknown to transformers{hint}")


def refuse_quantized(config: PretrainedConfig) -> None:
    """Weights that are not numbers to train, of the whole model or of its text part."""
    for part in (config, config.get_text_config()):
        if quantized := getattr(part, "quantization_config", None):
            kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
            raise ValueError(
                f"model: its weights are quantized ({kind}); training needs them in bf16 or fp32, "
                "beside an adapter too (no QLoRA): ZeRO-3 shards plain numbers, without the scales "
                "by which quantized ones are read"
            )


def refuse_unsupported(config: PretrainedConfig) -> None:
    """Parts of other architectures that would silently change the numbers."""
    if getattr(config, "output_router_logits", False):
        raise ValueError(
            "model: output_router_logits: true asks for a router loss, which is not supported: it "
            "is no sum over tokens, so it would be another on each layout; set it to false to "
            "train without"
        )
    if getattr(config, "attention_dropout", 0.0):
        raise ValueError(f"model: attention_dropout must be 0; {remedy(config)}")


def warn_of_positions(config: PretrainedConfig, *, sequence_tokens: int) -> None:
    """One line on stderr when samples are longer than what the model was trained for."""
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    if known is not None and known < sequence_tokens:
        print(
            f"WARNING: data.sequence_tokens {sequence_tokens} exceeds the model's "
            f"max_position_embeddings {known}: it has never seen such positions",
            file=sys.stderr,
            flush=True,
        )


def check_heads(config: PretrainedConfig, *, sp_size: int) -> None:
    """Heads must divide among the ranks that share a sequence.

    Raises:
        ValueError: naming the sizes that work.
    """
    for heads in heads_of_layers(config.get_text_config()):
        check_head_counts(heads=heads.queries, kv_heads=heads.keys, sp_size=sp_size)
