"""The planner's sizes of each family that it knows, against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from launch.planner.advice import can_tile
from launch.planner.families import FAMILIES
from launch.planner.forecast import forecast
from launch.planner.machine import Machine
from launch.planner.sizes import from_config
from tests.grids import WHOLE
from tests.training.layouts import tiny_recipe
from training.model.layers import decoder_layers
from training.run.fit import find_no_part

SIZES = {
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 40,
    "num_experts": 5,
    "num_local_experts": 5,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "n_shared_experts": 3,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
}
MLA: dict[str, Any] = {"q_lora_rank": 20, "kv_lora_rank": 12, "num_key_value_heads": 6}
MLA |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 14, "first_k_dense_replace": 1}
MLA |= {"n_group": 1, "topk_group": 1}
DELTA: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
DELTA |= {"linear_key_head_dim": 6, "linear_value_head_dim": 10}
DELTA |= {"layer_types": ["linear_attention", "full_attention"], "head_dim": 20}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 24, "mamba_n_groups": 2, "mamba_d_state": 14}
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "falcon_h1": MAMBA | {"mamba_d_ssm": 192},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "head_dim": 12,
        "global_head_dim": 20,
        "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": 512,
    },
    "glm4_moe": {"first_k_dense_replace": 1},
    "glm4_moe_lite": MLA,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "opt": {"word_embed_proj_dim": 96},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "qwen3_5_moe_text": DELTA,
    "qwen3_5_text": DELTA,
    "qwen3_moe": {"mlp_only_layers": [0]},
    "qwen3_next": DELTA,
}
OTHERS: dict[str, list[dict[str, Any]]] = {
    "deepseek_v3": [{"q_lora_rank": None, "attention_bias": True}],
    "falcon_h1": [
        {"mamba_rms_norm": True, "projectors_bias": True, "mamba_proj_bias": True},
        {"mamba_conv_bias": False, "mamba_d_ssm": None},
    ],
    "gemma4_text": [
        {"layer_types": None, "num_hidden_layers": 7, "use_double_wide_mlp": True},
        {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 3,
            "hidden_size_per_layer_input": 0,
        },
        {
            "num_kv_shared_layers": 2,
            "num_hidden_layers": 4,
            "use_double_wide_mlp": True,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ],
    "granitemoehybrid": [{"num_local_experts": 0, "mamba_proj_bias": True}],
    "granitemoeshared": [{"shared_intermediate_size": 0}],
    "lfm2": [
        {"conv_bias": True, "block_auto_adjust_ff_dim": False},
        {"layer_types": None, "full_attn_idxs": [1], "block_ffn_dim_multiplier": 1.5},
    ],
    "qwen3_next": [{"layer_types": None, "num_hidden_layers": 5, "decoder_sparse_step": 2}],
}
"""Settings that add or remove weights."""


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
    settings = (kind.qkv_bias, kind.out_bias, kind.mlp_bias, kind.qk_norm_if or False)
    if has_all:
        config |= {key: True for key in settings if key and isinstance(key, str)}
        config |= dict.fromkeys(kind.unplanned[:1], False)
        config["tie_word_embeddings"] = not kind.tied
    compare(config)


@pytest.mark.parametrize(("family", "keys"), [(f, keys) for f in OTHERS for keys in OTHERS[f]])
def test_weights_that_a_setting_adds_or_removes_are_counted(family, keys) -> None:
    compare(small(family) | keys)


def compare(config: dict[str, Any]) -> None:
    """All weights, those of each layer, and those that a token meets."""
    with torch.device("meta"):
        known = AutoConfig.for_model(**config)
        model = AutoModelForCausalLM.from_config(known)
    arch = from_config(config, source="test")
    assert [sum(arch.weights_of(layer)) for layer in arch.stack] == [
        sum(weight.numel() for weight in layer.parameters()) for layer in decoder_layers(model)
    ]
    assert arch.parameters == sum(weight.numel() for weight in model.parameters())
    experts = [w for name, w in model.named_parameters() if ".experts." in name]
    idle = sum(w.numel() - known.num_experts_per_tok * w[0].numel() for w in experts)
    assert arch.active_parameters == arch.parameters - idle
    in_layers = sum(w.numel() for layer in decoder_layers(model) for w in layer.parameters())
    head = model.get_output_embeddings().weight.numel()
    projected = arch.layers * arch.beside * arch.hidden + arch.beside
    assert arch.multiplied_weights == in_layers - idle + head + projected
    # published files name the same settings as what transformers writes
    assert from_config(known.to_dict(), source="test") == arch


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
    other = {**config, "text_config": {**text, "model_type": "gemma3n_text"}}
    with pytest.raises(ValueError, match="base: model_type gemma3n_text is not supported by"):
        from_config(other, source="base")


def test_a_layer_with_a_state_is_not_planned_with_a_part_of_a_sample() -> None:
    config = {**small("lfm2"), "num_hidden_layers": 2}
    sizes = {"train__sequence_parallel_size": 2, "train__micro_batch_samples": 2}
    recipe = tiny_recipe(model__config=config, **sizes)
    with pytest.raises(ValueError, match="_size 2: layers of lfm2 carry a state through whole doc"):
        forecast(recipe, Machine(num_gpus=2, gpu_gib=80))


def test_experts_that_cannot_be_are_refused() -> None:
    for keys, told in (
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the 5 experts"),
        ({"num_experts": None}, r"num_experts must be an integer above 0 \(is None\)"),
        ({"shared_expert_intermediate_size": -1}, "must be 0 or an integer above it"),
        ({"layer_types": ["linear_attention"]}, "layer_types has 1 entries for 2 layers"),
        ({"layer_types": ["rnn", "full_attention"]}, "layer_types rnn is not supported by the pl"),
    ):
        with pytest.raises(ValueError, match=told):
            from_config(small("qwen3_next") | keys, source="model.config")
    with pytest.raises(ValueError, match="qk_layernorm: true is not supported by the planner for"):
        from_config(small("phi") | {"qk_layernorm": True}, source="model.config")


def test_a_family_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"model_type qwen33 is not .*qwen3.*; supported are bl"):
        from_config({"model_type": "qwen33"}, source="model.config")
    # of a model that exists another family is no cure
    with pytest.raises(ValueError, match="mamba2 is not supported by the planner; supported"):
        from_config({"model_type": "mamba2"}, source="base/config.json")
    projected = small("opt") | {"word_embed_proj_dim": 48}
    with pytest.raises(ValueError, match="word_embed_proj_dim 48 is not supported by the planner"):
        from_config(projected, source="model.config")


def test_quantized_weights_are_refused_as_by_training() -> None:
    config, quantized = small("gpt_oss"), {"quantization_config": {"quant_method": "mxfp4"}}
    told = r"config\.json: its weights are quantized \(mxfp4\); training needs them in bf16 or fp32"
    for given in (config | quantized, {"text_config": config | quantized}):
        with pytest.raises(ValueError, match=told):
            from_config(given, source="base/config.json")
    from_config(config | {"quantization_config": None}, source="base/config.json")


@pytest.mark.parametrize(
    "family", FAMILIES if WHOLE else ["bloom", "falcon_h1", "gpt2", "qwen3_moe"]
)
def test_tiles_are_proposed_only_where_training_has_them(family: str) -> None:
    recipe = tiny_recipe(model={"config": {"model_type": family}, "tiled_mlp": True})
    config = AutoConfig.for_model(family)
    if family == "nemotron":  # not a model by its defaults
        config.num_key_value_heads = config.num_attention_heads
    usual = {"num_experts_per_tok": 2} if family == "deepseek_v2" else {}
    proposed = can_tile(from_config(config.to_dict() | usual, source="defaults"))
    assert not proposed or find_no_part(recipe, config) is None
