"""The planner's sizes of each family that it knows, against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from launch.planner.architecture import from_config
from launch.planner.families import FAMILIES
from training.model.layers import decoder_layers

SIZES = {
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 16},
    "opt": {"word_embed_proj_dim": 96},
}


def small(family: str) -> dict[str, Any]:
    """Of the family's sizes those that it has, under its own names."""
    known, kind = AutoConfig.for_model(family), FAMILIES[family]
    named = {kind.names.get(key, key): value for key, value in SIZES.items()}
    config = {key: value for key, value in named.items() if hasattr(known, key)}
    if kind.positions is not None:
        config[kind.positions] = 64
    return {"model_type": family, "pad_token_id": 0, **config, **OWN.get(family, {})}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("has_all", [False, True])
def test_weights_are_counted_as_transformers_makes_them(family: str, has_all: bool) -> None:
    kind, config = FAMILIES[family], small(family)
    settings = (kind.qkv_bias, kind.out_bias, kind.mlp_bias)
    if has_all:
        config |= {key: True for key in settings if isinstance(key, str)}
        config["tie_word_embeddings"] = not kind.tied
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    arch = from_config(config, source="test")
    assert arch.parameters == sum(weight.numel() for weight in model.parameters())
    layer = decoder_layers(model)[0]
    assert sum(arch.layer_weights) == sum(weight.numel() for weight in layer.parameters())


def test_of_a_model_with_images_the_text_model_is_planned() -> None:
    """What a config.json of gemma3 leaves out is as transformers has it."""
    text = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2}
    text["model_type"] = "gemma3_text"
    vision = {"hidden_size": 32, "num_hidden_layers": 1}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": vision}
    with torch.device("meta"):
        known = AutoConfig.for_model(**config).get_text_config()
        model = AutoModelForCausalLM.from_config(known)
    arch = from_config(config, source="test")
    assert (arch.family, arch.heads, arch.kv_heads, arch.head) == ("gemma3_text", 8, 4, 256)
    assert arch.parameters == sum(weight.numel() for weight in model.parameters())
    other = {**config, "text_config": {**text, "model_type": "qwen3_5_text"}}
    with pytest.raises(ValueError, match="base: model_type qwen3_5_text is not supported by"):
        from_config(other, source="base")


def test_a_family_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"model_type qwen33 is not .*qwen3.*; supported are bl"):
        from_config({"model_type": "qwen33"}, source="model.config")
    # of a model that exists another family is no cure
    with pytest.raises(ValueError, match="gpt_oss is not supported by the planner; supported"):
        from_config({"model_type": "gpt_oss"}, source="base/config.json")
    projected = small("opt") | {"word_embed_proj_dim": 48}
    with pytest.raises(ValueError, match="word_embed_proj_dim 48 is not supported by the planner"):
        from_config(projected, source="model.config")
