"""Activation checkpointing, and what it keeps in the host's memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from transformers import PreTrainedModel


def checkpoint_layers(lm: PreTrainedModel, *, offloads: bool) -> None:
    """Compute each layer again in the backward pass, from its input.

    Args:
        offloads: keep these inputs in pinned host memory meanwhile. What a layer keeps while it is
            computed again stays on its device.
    """
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    if not offloads:
        return
    for module in lm.modules():
        if getattr(module, "gradient_checkpointing", False):
            own: Any = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = functools.partial(_offloaded, own)  # type: ignore[assignment]


def _offloaded(checkpoint: Callable[..., Any], run: Callable[..., Any], *inputs: Any) -> Any:
    if not any(isinstance(value, torch.Tensor) for value in inputs):
        raise ValueError("model.activation_offloading: its layers take hidden states by keyword")
    # of the stack of such hooks the last one counts: within the layer the checkpoint has its own
    with save_on_cpu(pin_memory=True):
        return checkpoint(run, *inputs)
