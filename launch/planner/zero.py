"""What the DeepSpeed JSON of a recipe says of memory, with DeepSpeed's own defaults."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from training.config.layout import second_partition
from training.config.recipe import Recipe
from training.config.shipped import find_ds_config

# deepspeed/runtime/zero/config.py of DeepSpeed 0.19: numbers of parameters, not bytes
_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}
_TYPE_BYTES = {"bf16": 2, "bfp16": 2, "bfloat16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Zero:
    """ZeRO of a run, sizes in numbers of parameters."""

    shards_weights: bool
    """At stage 3; else, at stage 1, the optimizer's state alone."""
    number_bytes: int
    """Of a weight, an activation and a gradient of one micro-step: 2 in bf16, 4 in fp32."""
    gradient_bytes: int
    """Of a gradient that is added up over micro-steps."""
    communication_bytes: int
    """Of a gradient in flight to the rank that keeps it."""
    reduce_bucket: int
    contiguous_gradients: bool
    sub_group: int
    prefetch_bucket: int
    persistence_threshold: int
    max_live: int
    max_reuse_distance: int
    offloads_optimizer: bool
    offloads_parameters: bool
    pins_optimizer: bool
    second_partition: int = 1
    """Ranks of a node that hold all weights together, too (hpZ); 1 where they do not."""


def read_zero(recipe: Recipe) -> Zero:
    """Read the JSON that `recipe.deepspeed` names.

    Raises:
        ValueError: when it cannot be read, or a size in it is not a number.
    """
    path = find_ds_config(recipe.deepspeed)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        zero: dict[str, Any] = config.get("zero_optimization", {})
        sizes = {key: int(zero.get(key, default)) for key, default in _DEFAULTS.items()}
        optimizer = zero.get("offload_optimizer") or {}
        parameters = zero.get("offload_param") or {}
        number_bytes = 2 if config.get("bf16", {}).get("enabled") is True else 4
        accumulation = config.get("data_types", {}).get("grad_accum_dtype", "fp32")
    except OSError as error:
        raise ValueError(f"deepspeed: {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"deepspeed: {path}: {error}") from None
    # With sequence parallelism DeepSpeed adds gradients in fp32, whatever else is set.
    if recipe.train.sequence_parallel_size > 1:
        asked = config.get("seq_parallel_communication_data_type") or "fp32"
    else:
        asked = config.get("communication_data_type")
    return Zero(
        shards_weights=zero.get("stage") != 1,
        number_bytes=number_bytes,
        gradient_bytes=_TYPE_BYTES.get(str(accumulation), 4),
        communication_bytes=_TYPE_BYTES.get(str(asked), number_bytes),
        reduce_bucket=sizes["reduce_bucket_size"],
        contiguous_gradients=zero.get("contiguous_gradients", True),
        sub_group=sizes["sub_group_size"],
        prefetch_bucket=sizes["stage3_prefetch_bucket_size"],
        persistence_threshold=sizes["stage3_param_persistence_threshold"],
        max_live=sizes["stage3_max_live_parameters"],
        max_reuse_distance=sizes["stage3_max_reuse_distance"],
        offloads_optimizer=_is_offloaded(optimizer),
        offloads_parameters=_is_offloaded(parameters),
        pins_optimizer=bool(optimizer.get("pin_memory", False)),
        second_partition=second_partition(
            zero.get("zero_hpz_partition_size", 1), deepspeed=recipe.deepspeed
        ),
    )


def _is_offloaded(section: dict[str, Any]) -> bool:
    return section.get("device", "none") != "none"
