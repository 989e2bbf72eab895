"""Small models in several shapes, for forecasts of memory beside what their steps take."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.planner.forecast import make_run
from launch.planner.memory import peak_moments
from launch.planner.models import find_architecture
from launch.planner.rank import Moment, Phase
from tests.training.layouts import tiny_recipe
from training.config.adapter import Adapter
from training.config.recipe import Recipe

# so that buckets, gathering ahead and what stays whole matter as they do for large models
ZERO = {
    "stage": 3,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000,
    "stage3_prefetch_bucket_size": 50_000,
    "stage3_param_persistence_threshold": 100,
    "stage3_max_live_parameters": 1_000_000,
    "stage3_max_reuse_distance": 1_000_000,
}


@dataclass(frozen=True)
class Shape:
    """What is trained, and how."""

    name: str
    model: dict[str, Any]
    tokens: int
    samples: int = 1
    checkpointing: bool = False
    tiled: bool = False
    num_ranks: int = 2
    sp: int = 1
    bf16: bool = False
    zero: dict[str, int] = field(default_factory=dict)
    stage: int = 3

    def recipe(self, folder: Path) -> Recipe:
        """Its recipe, with a DeepSpeed JSON of its own in the folder."""
        ds_path = folder / f"{self.name.replace(' ', '-')}.json"
        zero = ZERO | self.zero if self.stage == 3 else {"stage": self.stage}
        ds_path.write_text(json.dumps({"bf16": {"enabled": self.bf16}, "zero_optimization": zero}))
        model = {"tie_word_embeddings": False, "max_position_embeddings": 4096} | self.model
        samples_per_step = self.samples * self.num_ranks // self.sp
        return tiny_recipe(
            deepspeed=str(ds_path),
            **{f"model__config__{key}": value for key, value in model.items()},
            model__activation_checkpointing=self.checkpointing,
            model__tiled_mlp=self.tiled,
            data__sequence_tokens=self.tokens,
            train__global_batch_tokens=samples_per_step * self.tokens,
            train__micro_batch_samples=self.samples,
            train__sequence_parallel_size=self.sp,
            train__gradient_clipping=1.0,
            entropy__source="reference",
        )


def _model(hidden: int, mlp: int, layers: int, heads: tuple[int, int, int], vocab: int) -> Any:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": vocab,
    }


_DEEP = _model(256, 768, 12, (4, 2, 64), 4000)
_WIDE = _model(256, 1024, 4, (4, 4, 64), 2000)
_SHORT = _model(128, 384, 4, (4, 2, 32), 1000)
_LONE = _model(192, 1024, 8, (6, 6, 32), 500)

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
_MLA = _EXPERTS | {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 1,
    "n_shared_experts": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 96, "kv_lora_rank": 64,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 48, "v_head_dim": 48, "head_dim": 16,
}  # fmt: skip
_DELTA = {
    "model_type": "qwen3_5_text", "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
_MAMBA = {
    "model_type": "granitemoehybrid", "layer_types": ["mamba", "mamba", "mamba", "attention"],
    "num_local_experts": 0, "shared_intermediate_size": 384, "mamba_n_heads": 8,
    "mamba_d_head": 32, "mamba_d_state": 32, "mamba_chunk_size": 64,
}  # fmt: skip

_SIZES = {
    "model_type": "gemma4_text", "global_head_dim": 64, "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 1000, "tie_word_embeddings": True, "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4096,
}  # fmt: skip

SHAPES = (
    Shape("activations", _SHORT, 256, samples=2),
    Shape("checkpointing", _WIDE, 256, samples=4, checkpointing=True),
    Shape("one rank", _LONE, 512, samples=2, num_ranks=1),
    Shape("one rank, checkpointing", _LONE, 512, samples=2, num_ranks=1, checkpointing=True),
    Shape("two to a sample", _WIDE, 512, samples=2, sp=2),
    Shape("bf16", _WIDE, 256, samples=2, bf16=True),
    Shape("bf16, checkpointing", _SHORT, 256, samples=2, bf16=True, checkpointing=True),
    Shape("stage 1", _SHORT, 256, samples=2, bf16=True, checkpointing=True, stage=1),
    Shape("bf16, two to a sample", _WIDE, 256, samples=2, bf16=True, sp=2),
    Shape(
        "tied", _model(256, 768, 6, (4, 2, 64), 4000) | {"tie_word_embeddings": True}, 128,
        checkpointing=True,
    ),
    Shape("llama", _WIDE | {"model_type": "llama"}, 512, samples=2),
    Shape(
        "nothing kept whole", _DEEP, 64,
        zero={"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0},
    ),
    Shape("whole", _DEEP, 64, bf16=True, zero={"stage3_param_persistence_threshold": 10**12}),
    Shape(
        "all kept whole", _DEEP, 64, checkpointing=True,
        zero={
            "stage3_max_live_parameters": 10**9,
            "stage3_max_reuse_distance": 10**9,
            "reduce_bucket_size": 5_000_000,
        },
    ),
    Shape("tiled", _SHORT, 512, samples=2, tiled=True),
    Shape("tiled, long sample", _model(128, 512, 4, (4, 2, 32), 500), 8192, num_ranks=1, bf16=True,
          checkpointing=True, tiled=True),
    Shape("experts", _SHORT | _EXPERTS | {"model_type": "qwen3_moe", "num_experts": 8}, 256),
    Shape(
        "experts, checkpointing", _SHORT | _EXPERTS | {"model_type": "qwen3_moe", "num_experts": 8},
        512, samples=2, bf16=True, checkpointing=True,
    ),
    Shape("latent", _SHORT | _MLA, 512),
    Shape("clamped experts", _SHORT | {"model_type": "gpt_oss", "num_local_experts": 8,
          "num_experts_per_tok": 2}, 512),
    Shape("delta", _SHORT | _DELTA, 512),
    Shape("delta, checkpointing", _SHORT | _DELTA, 512, bf16=True, checkpointing=True),
    Shape("several sizes", _SHORT | _SIZES, 512),
    Shape("mamba", _SHORT | _MAMBA, 512),
    Shape("convolution", _SHORT | {"model_type": "lfm2", "layer_types": ["conv", "conv", "conv",
          "full_attention"]}, 512),
)  # fmt: skip


def beside_adapter(recipe: Recipe, folder: Path, **settings: Any) -> Recipe:
    """The same shape as an adapter beside a base, which is made in the folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**(recipe.model.config or {}))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    model = replace(recipe.model, pretrained=str(folder / "base"), config=None)
    return replace(recipe, model=model, adapter=Adapter(**settings))


def forecast_peaks(recipe: Recipe, *, num_ranks: int) -> dict[Phase, Moment]:
    """What the planner says of the same steps on this machine's processes."""
    arch = find_architecture(recipe)
    return peak_moments(make_run(recipe, arch, world_size=num_ranks, on_gpu=False))
