"""Liger's fused norms, rotations and gated units in a model's layers (`model.kernels: liger`)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from training.config.sections import Model

FAMILIES = (
    *("gemma", "gemma2", "gemma3_text", "granite", "llama", "ministral", "mistral", "olmo2"),
    *("olmo3", "phi3", "qwen2", "qwen3", "smollm3"),
)
"""By `model_type`, those with norms, rotations and MLPs that Liger fuses all."""
_ROTATE = "apply_rotary_pos_emb"


def refuse_fused(model: Model, config: PretrainedConfig, *, has_gpu: bool) -> None:
    """Called at the start of a run, before Liger is loaded.

    Raises:
        ValueError: where Liger or a GPU is missing, or the family is not one of `FAMILIES`.
    """
    if model.kernels == "plain":
        return
    family = config.get_text_config().model_type
    if family not in FAMILIES:
        covered = ", ".join(FAMILIES)
        raise ValueError(
            f"model.kernels: liger does not cover {family} (it covers {covered}): set it to plain"
        )
    if not has_gpu:
        raise ValueError("model.kernels: liger needs a GPU, and this is a run on CPUs: set plain")
    found = find_spec("liger_kernel")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise ValueError(
            "model.kernels: liger needs liger-kernel: pip install '.[kernels]' in the checkout"
        )


def fuse_layers(lm: PreTrainedModel) -> None:
    """Replace norms, rotations and gated units of this instance, and of no other.

    Liger's own function for the family knows its offsets and casts. It also replaces classes and
    the rotation in transformers' module, where models made later would find them: that is undone,
    and the rotation given to this model's attentions alone.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    modeling = vars(sys.modules[type(lm).__module__])
    before = dict(modeling)
    apply: Callable[..., None] = MODEL_TYPE_TO_APPLY_LIGER_FN[lm.config.model_type]
    try:
        apply(rope=True, cross_entropy=False, fused_linear_cross_entropy=False, model=lm)
        rotated = before | {_ROTATE: modeling[_ROTATE]}
    finally:
        modeling.update(before)
    for module in lm.modules():
        if vars(module).get("in_place"):  # gradients that others may still read would be lost
            module.in_place = False  # type: ignore[assignment]
        forward: Any = inspect.unwrap(type(module).forward)
        if _ROTATE in forward.__code__.co_names:
            module.forward = MethodType(_with_names(forward, rotated), module)


def fused_parts(lm: PreTrainedModel) -> dict[str, str]:
    """By name, the modules whose `forward` is not their class's, and what they call themselves."""
    return {name: part._get_name() for name, part in lm.named_modules() if _is_fused(part)}


def _is_fused(module: nn.Module) -> bool:
    return "forward" in vars(module)


def _with_names(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    """The same function, which looks global names up in other ones."""
    copied = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
