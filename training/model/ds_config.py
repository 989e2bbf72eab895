"""The DeepSpeed JSON, checked, with the recipe's own keys joined in."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from common.hints import did_you_mean
from training.config.recipe import Recipe
from training.config.shipped import find_ds_config

_RECIPE_OWNS = {
    "train_batch_size": "train.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "train.micro_batch_samples",
    "gradient_accumulation_steps": "train.global_batch_tokens",
    "gradient_clipping": "train.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "schedule",
}
_SECTIONS = ("bf16", "fp16", "data_types", "zero_optimization")
"""Keys of the DeepSpeed JSON that affect how numbers are computed."""
_HARMLESS = (
    *("activation_checkpointing", "aio", "checkpoint", "comms_logger", "communication_data_type"),
    *("compile", "csv_monitor", "disable_allgather", "disable_python_gc"),
    *("dump_state", "flops_profiler", "log_level", "memory_breakdown", "prescale_gradients"),
    *("seq_parallel_communication_data_type", "steps_per_print", "tensorboard", "timers", "wandb"),
    *("wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
)
"""Others that work with this engine. DeepSpeed ignores what it does not know; what is not here is
misspelt, or another way to train (pipelines, autocast, curricula) that nobody has tried."""
_ACCUMULATION = ("fp32", "bf16")
"""Of gradients over micro-steps. In bf16 64 of them were wrong by 1%, one rounding being 0.2%."""


_STAGES = (1, 3)
_OF_STAGE_3 = (
    *("stage3_", "offload_", "zero_", "super_offload", "zenflow", "leaf_module", "sub_group_size"),
    *("round_robin_gradients", "mics_", "memory_efficient_linear"),
)
"""How keys of `zero_optimization` begin that say nothing, or nothing tried, under stage 1."""


def training_dtype(deepspeed: str) -> torch.dtype:
    """bf16 where the DeepSpeed JSON enables it, else fp32."""
    enabled = _read_ds_config(deepspeed).get("bf16", {}).get("enabled", False)
    return torch.bfloat16 if enabled else torch.float32


def zero_stage(deepspeed: str) -> int:
    """Of a DeepSpeed JSON that `join_ds_config` takes."""
    return int(_read_ds_config(deepspeed)["zero_optimization"]["stage"])


def shards_all(ds_config: Mapping[str, Any]) -> bool:
    """Whether ranks share out the weights (stage 3), not the optimizer alone (stage 1)."""
    return bool(ds_config["zero_optimization"]["stage"] == 3)


def _read_ds_config(deepspeed: str) -> dict[str, Any]:
    path = find_ds_config(deepspeed)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"deepspeed: {path}: {error.strerror}") from None
    except ValueError as error:  # bad JSON, bad UTF-8
        raise ValueError(f"deepspeed: {path}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"deepspeed: {path}: expected keys and values")
    for name in _SECTIONS:
        if not isinstance(config.get(name, {}), dict):
            raise ValueError(f"deepspeed: {path}: {name}: expected keys and values")
        enabled = config.get(name, {}).get("enabled", False)
        if enabled not in (False, True, "auto"):  # "auto" is refused with its own reason
            raise ValueError(
                f"deepspeed: {path}: {name}.enabled: expected true or false, found {enabled!r}"
            )
    return config


def join_ds_config(recipe: Recipe, *, num_micro_steps: int, has_gpu: bool) -> dict[str, Any]:
    """The DeepSpeed JSON of the recipe, with the recipe's own keys joined in.

    Raises:
        ValueError: when the JSON is unreadable, sets what the recipe owns, or asks for a mode
            in which losses or gradients would be wrong.
    """
    path, config = recipe.deepspeed, _read_ds_config(recipe.deepspeed)
    mistakes = [
        f"{key} belongs to the recipe ({owner})"
        for key, owner in _RECIPE_OWNS.items()
        if key in config
    ]
    allowed = {*_SECTIONS, *_HARMLESS}
    for key in sorted(config.keys() - allowed - _RECIPE_OWNS.keys()):
        hint = did_you_mean(key, allowed, otherwise=f"allowed are {', '.join(sorted(allowed))}")
        mistakes.append(f"{key}: unknown key, or not for this engine{hint}")
    zero = config.get("zero_optimization", {})
    mistakes += _mistakes_of_zero(zero)
    if zero.get("stage") not in _STAGES:
        mistakes.append(f"zero_optimization.stage is {zero.get('stage')}; allowed are 1 and 3")
    if zero.get("reduce_scatter", True) is not True:
        mistakes.append(
            "zero_optimization.reduce_scatter must be true: else sequence shards add up wrongly"
        )
    offload = zero.get("offload_optimizer")
    if isinstance(offload, dict) and offload.get("super_offload"):
        mistakes.append(
            "zero_optimization.offload_optimizer.super_offload is not supported: DeepSpeed keeps "
            "Adam's moments in a process of its own then, and in no checkpoint; leave it out"
        )
    if config.get("fp16", {}).get("enabled"):
        mistakes.append("fp16 is not supported; use bf16, or neither for fp32")
    accumulation = config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    if accumulation not in _ACCUMULATION:
        mistakes.append(
            f"data_types.grad_accum_dtype is {accumulation!r}; allowed are "
            f"{' and '.join(_ACCUMULATION)}, of which the first is the default"
        )
    elif zero.get("stage") == 1:
        mistakes += _mistakes_of_stage_1(zero, accumulation)
        # gradients of a micro-step are freed one by one; without it they stay beside their sum
        if config.setdefault("bf16", {}).setdefault("immediate_grad_update", True) is not True:
            mistakes.append("bf16.immediate_grad_update: stage 1 needs true, the default here")
    if '"auto"' in json.dumps(config):
        mistakes.append('"auto" is a value of the Hugging Face Trainer; leave the key out')
    if mistakes:
        raise ValueError(f"deepspeed: {path}:\n" + "\n".join(f"  - {m}" for m in mistakes))

    opt = recipe.optimizer
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    adam = {"lr": opt.lr, "betas": [opt.beta1, opt.beta2], "eps": opt.eps}
    # with offload DeepSpeed's own CPU Adam; elsewhere torch's, which needs no compiler
    adam |= {"weight_decay": opt.weight_decay}
    if not offloads:
        adam |= {"torch_adam": True, "fused": True}
    if not has_gpu:
        zero.pop("overlap_comm", None)
    # DeepSpeed's own linear holds no weights between forward and backward, for host time in each
    # call; a layer that is recomputed holds none there with torch's, either
    if shards_all(config):
        zero.setdefault("memory_efficient_linear", not recipe.model.activation_checkpointing)
    # it waits for the device twice a micro-step
    config.setdefault("timers", {"throughput": {"enabled": False}})
    return config | {
        "train_micro_batch_size_per_gpu": recipe.train.micro_batch_samples,
        "gradient_accumulation_steps": num_micro_steps,
        "gradient_clipping": recipe.train.gradient_clipping or 0.0,
        "optimizer": {"type": "AdamW", "params": adam},
        "steps_per_print": 2**31,
    }


def _mistakes_of_stage_1(zero: dict[str, Any], accumulation: str) -> list[str]:
    """Keys that DeepSpeed would take and not follow, or that nobody has tried."""
    mistakes = [
        f"zero_optimization.{key} needs stage 3"
        for key in sorted(zero)
        if key.startswith(_OF_STAGE_3) and zero[key]
    ]
    if accumulation != "fp32":
        mistakes.append(
            "data_types.grad_accum_dtype bf16 needs zero_optimization.stage 3: stage 1 adds "
            "gradients up in fp32"
        )
    return mistakes


def _mistakes_of_zero(zero: dict[str, Any]) -> list[str]:
    """What DeepSpeed itself would refuse, but only once the model is built."""
    try:
        DeepSpeedZeroConfig(**copy.deepcopy(zero))
    except ValidationError as error:
        return [
            f"zero_optimization.{'.'.join(map(str, item['loc']))}: {item['msg']}"
            f" (is {item['input']!r})"
            for item in error.errors()
        ]
    return []
