"""Host time that DeepSpeed takes in every micro-step, and that no setting of its own spares."""

from __future__ import annotations

import inspect
from typing import Any

from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3
from deepspeed.utils import nvtx
from torch import nn

_HOOKS = ("pre_bwd_fn", "post_bwd_fn")


def spare_host_time(model: nn.Module, *, keeps_ranges: bool) -> None:
    """For a model with the hooks of ZeRO-3; changes no result.

    Args:
        keeps_ranges: around DeepSpeed's functions for NVIDIA's profiler, thousands a micro-step.
    """
    nvtx.enable_nvtx = keeps_ranges
    _remember_signature(LinearFunctionForZeroStage3)
    for module in model.modules():
        for name in _HOOKS:
            if name in vars(module):
                _remember_signature(vars(module)[name])


def _remember_signature(function: Any) -> None:
    """`bind_default_args` in torch/autograd/function.py otherwise works it out in each call."""
    function.forward.__signature__ = inspect.signature(function.forward)
