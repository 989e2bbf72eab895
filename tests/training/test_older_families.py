"""Older decoders, ALiBi and RoPE that depends on length, on data and on sequence shards."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.families import measure_all

FALCON = {"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 4}
ALIBI = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
PHI3: dict[str, Any] = {
    "model_type": "phi3",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 512,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0 + n / 100 for n in range(8)],
        "long_factor": [1.0 + n for n in range(8)],
    },
}
DYNAMIC = {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16}
FEW = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_head": 4, "scale_attn_by_inverse_layer_idx": True},
    "gpt_bigcode": {"model_type": "gpt_bigcode", "n_head": 4},
    "gpt_neo": {"model_type": "gpt_neo", "num_heads": 4, "window_size": 16},
    "gpt_neox": {"model_type": "gpt_neox", "num_attention_heads": 4},
    "gptj": {"model_type": "gptj", "n_head": 4, "rotary_dim": 16, "n_embd": 128},
    "opt": {"model_type": "opt", "num_attention_heads": 4},
    "opt_350m": {
        "model_type": "opt",
        "num_attention_heads": 4,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "bloom": {"model_type": "bloom", "n_head": 12, "hidden_size": 48},
    "falcon_7b": FALCON,
    "falcon_40b": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_rw": FALCON | ALIBI,
    "mpt": {"model_type": "mpt", "n_heads": 12, "d_model": 48},
    "phi": {"model_type": "phi", "num_attention_heads": 4, "qk_layernorm": True},
    "stablelm": {"model_type": "stablelm", **FEW, "use_qkv_bias": True},
    "nemotron": {"model_type": "nemotron", **FEW},
    "starcoder2": {"model_type": "starcoder2", **FEW, "sliding_window": 16},
    "xglm": {"model_type": "xglm", "attention_heads": 4},
    "modernbert-decoder": {"model_type": "modernbert-decoder", "num_attention_heads": 4},
    "phi3_longrope": PHI3,
    "phi4_mini": PHI3 | {"partial_rotary_factor": 0.5},
    "llama_dynamic": {"model_type": "llama", **FEW, **DYNAMIC},
}
CONFIGS["gemma4"] = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 16,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
"""No older one, but with layers of different sizes, and tokens embedded in each."""
CONFIGS["phi4_mini"]["rope_scaling"] = {
    key: value[:4] if isinstance(value, list) else value
    for key, value in PHI3["rope_scaling"].items()
}

SOME = ("gpt2", "gpt_neo", "opt_350m", "bloom", "falcon_rw", "stablelm", "phi4_mini",
        "llama_dynamic", "modernbert-decoder", "gemma4")  # fmt: skip
"""One of each thing that a layout might change."""
TAKEN = CONFIGS if WHOLE else {name: CONFIGS[name] for name in SOME}
measured = functools.cache(lambda sp_size: run_ranks(measure_all, TAKEN, sp_size, world_size=2))


@pytest.mark.parametrize("family", TAKEN)
@pytest.mark.parametrize("sp_size", [1, 2] if WHOLE else [2])
def test_losses_and_gradients_are_those_of_plain_transformers(family, sp_size):
    assert [rank[family] for rank in measured(sp_size)] == [None, None]
