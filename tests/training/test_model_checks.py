"""Models whose numbers would silently differ are refused, those that only look so are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.training.refusals import build_ids, check, refused
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.checks import refuse_quantized, refuse_unknown_keys, warn_of_positions
from training.model.heads import heads_of
from training.model.own_dropout import own_dropout


def test_samples_beyond_the_positions_that_the_model_knows_are_told(capsys) -> None:
    config = AutoConfig.for_model("qwen3", max_position_embeddings=64)
    warn_of_positions(config, sequence_tokens=64)
    assert capsys.readouterr().err == ""
    warn_of_positions(config, sequence_tokens=65)
    (line,) = capsys.readouterr().err.splitlines()
    assert "sequence_tokens 65 exceeds the model's max_position_embeddings 64" in line


def resolve(**config: Any) -> Any:
    return resolve_model_config(Model(config=config), vocab_size=512, dtype=torch.float32)


def test_keys_of_published_configurations_mean_what_they_mean_to_transformers():
    scaling = {"rope_type": "linear", "factor": 2.0}
    config = resolve(
        model_type="llama", rope_theta=5e5, rope_scaling=scaling, torch_dtype="bfloat16"
    )
    assert config.rope_parameters == scaling | {"rope_theta": 5e5}
    assert config.dtype == torch.float32  # that of the DeepSpeed JSON
    config = resolve(model_type="llama", rope_theta=5e5, partial_rotary_factor=0.5)
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert resolve(model_type="qwen2", head_dim=48).head_dim == 48
    assert resolve(model_type="qwen3_moe", num_experts=24).num_local_experts == 24


@pytest.mark.parametrize(
    ("model_type", "key"),
    [
        ("qwen3", "rope_thetta"),
        ("qwen3", "head_dimm"),
        ("llama", "experts"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(model_type, key):
    message = refused(lambda: refuse_unknown_keys({"model_type": model_type, key: 1}))
    assert f"config.{key} is not a key of {model_type}" in message


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"model_type": "qwen2", "sliding_window": 16},
            "config.sliding_window 16 has no effect: of these keys together transformers makes "
            "sliding_window None; remove it, or set use_sliding_window: true",
        ),
        ({"model_type": "qwen3", "sliding_window": 16}, "config.sliding_window 16 has no effect"),
        (
            {"model_type": "llama", "rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}},
            "config.rope_theta 500000.0 has no effect: of these keys together transformers makes "
            "rope_theta 10000.0; ",
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5}, "rope_scaling": LINEAR},
            "config.rope_parameters {'rope_theta': 500000.0} has no effect: ",
        ),
        (
            {"model_type": "llama", "rope_scaling": {"factor": 2.0}},
            "config.rope_scaling.factor 2.0 has no effect: the rope_type 'default' does not read "
            "it; of those that do, take dynamic or linear or llama3 or ",
        ),
        (
            {"model_type": "llama", "rope_scaling": {**LINEAR, "beta_fastt": 32}},
            "config.rope_scaling.beta_fastt 32 has no effect: the rope_type 'linear' does not ",
        ),
    ],
)
def test_a_key_that_transformers_drops_is_refused(config, told):
    assert told in refused(lambda: resolve(**config))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2", "sliding_window": 32768, "use_sliding_window": False},
        {"model_type": "qwen3", "sliding_window": 16, "use_sliding_window": True},
        {"model_type": "cohere2", "sliding_window_pattern": 4},
        {"model_type": "cohere2", "sliding_window_pattern": 2},
        {"model_type": "llama", "rope_theta": 1e4, "rope_scaling": LINEAR},
        {"model_type": "llama", "rope_theta": 5e5, "rope_parameters": LINEAR},
        {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"model_type": "llama", "rope_scaling": None, "rope_theta": 5e5, "head_dim": None},
        {"model_type": "llama", "rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}},
        {"model_type": "qwen3", "rope_parameters": {**YARN, "beta_fast": 32.0, "truncate": True}},
        {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0},
         "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16"},
        {"model_type": "llama", "transformers_version": "4.51.0", "use_cache": True},
    ],
)  # fmt: skip
def test_a_key_that_is_read_passes_whatever_became_of_it(config):
    resolve(**config)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "cohere2", "gemma3_text", "phi"])
def test_all_keys_of_a_class_may_be_written_out(model_type):
    keys = {k: v for k, v in AutoConfig.for_model(model_type).to_dict().items() if v is not None}
    resolve(**keys)


def test_rope_parameters_of_a_recipe_stay_as_they_were_written():
    rope = {"rope_type": "linear", "factor": 2.0}
    assert resolve(model_type="llama", rope_parameters=rope).rope_parameters["rope_theta"] == 1e4
    assert rope == {"rope_type": "linear", "factor": 2.0}


def test_numbers_in_quantized_weights_are_refused_wherever_the_configuration_says_so():
    config = AutoConfig.for_model("got_ocr2")
    refuse_quantized(config)
    for part in (config, config.get_text_config()):
        part.quantization_config = {"quant_method": "fp8"}
        with pytest.raises(ValueError, match=r"quantized \(fp8\).*no QLoRA"):
            refuse_quantized(config)
        del part.quantization_config


def test_layers_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="dots3_note_text has layers of different sizes"):
        resolve(model_type="dots3_note_text")


@pytest.mark.parametrize(
    ("vocab_size", "told"),
    [
        (299, "documents use ids up to 299: it was tokenised for another model; build it with"),
        (300, "documents use no id above 299, but its tokenizer, which an export takes along"),
    ],
)
def test_a_vocabulary_below_the_tokenizers_is_told_with_the_ids_in_use(
    small_corpus, tmp_path, vocab_size, told
):
    rows = [{"ids": [5, 6, i], "mask": [1] * 3} for i in range(300)]
    made = build_ids(tmp_path / "made", rows, tokenizer=small_corpus / "tokenizer", val_frac=0.3)
    message = refused(lambda: check(made, model__config__vocab_size=vocab_size))
    assert f"model vocabulary {vocab_size} is smaller than the corpus's 512" in message
    assert told in message


@pytest.mark.parametrize(
    ("model_type", "keys", "heads"),
    [
        ("gpt2", {"n_head": 6}, (6, 6)),
        ("qwen3", {"num_attention_heads": 8, "num_key_value_heads": 2}, (8, 2)),
        ("gpt_bigcode", {"n_head": 6}, (6, 1)),
        ("gpt_bigcode", {"n_head": 6, "multi_query": False}, (6, 6)),
        ("falcon", {"num_kv_heads": 71}, (71, 1)),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 8, "hidden_size": 8192,
                    "num_attention_heads": 128}, (128, 128)),
    ],
)  # fmt: skip
def test_heads_are_found_under_the_names_of_each_family(model_type, keys, heads):
    assert heads_of(AutoConfig.for_model(model_type, **keys)) == heads


def test_a_models_own_dropout_is_0_only_where_the_recipe_says_so():
    config = {"model_type": "seed_oss", "attention_dropout": 0.1, "residual_dropout": 0.2}
    told = "attention_dropout must be 0; set model.disable_dropout: true, which makes "
    assert told in refused(lambda: resolve(**config))
    model = Model(config=config, disable_dropout=True)
    made = resolve_model_config(model, vocab_size=512, dtype=torch.float32)
    assert (made.attention_dropout, made.residual_dropout) == (0.0, 0.0)
    gpt2 = AutoConfig.for_model("gpt2")
    assert set(own_dropout(gpt2)) == {"attn_pdrop", "embd_pdrop", "resid_pdrop"}
