"""L2-SP: weights decay towards where the run began, in the optimizer's own step under ZeRO.

Li, Grandvalet, Davoine: Explicit inductive bias for transfer learning with convolutional networks,
2018 (arXiv 1802.01483), which adds strength / 2 * |w - base|^2 to the loss. Under Adam that would
be divided by the size of the gradient, so here it is decoupled, as weight decay is in AdamW (arXiv
1711.05101): before each update w becomes w - lr * strength * (w - base).
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from training.model.own_parts import OwnParts

_NUMBERS_AT_ONCE = 1 << 24
_PLAIN = (DeepSpeedZeroOptimizer_Stage3, DeepSpeedZeroOptimizer, BF16_Optimizer)


def decay_towards_base(zero: Any, parts: OwnParts, *, strength: float, dtype: torch.dtype) -> None:
    """From now on each update of DeepSpeed's optimizer begins with such a decay.

    It is called when the weights are those of the base, before a checkpoint is loaded. Each rank
    keeps its share of them, in the dtype of the training, beside the optimizer's fp32 weights.

    Raises:
        ValueError: for an optimizer whose weights are not in memory between steps, or that makes
            its steps in another way.
    """
    masters = parts.masters()
    is_in_memory = all(master.numel() for master in masters)
    if type(zero) not in _PLAIN or getattr(zero, "zenflow", False) or not is_in_memory:
        raise ValueError(
            "regularisers: l2_sp needs the optimizer's weights in memory and its plain steps: no "
            "nvme, super_offload or zenflow in the JSON of `deepspeed`"
        )
    bases = [master.detach().to(dtype, copy=True) for master in masters]

    @torch.no_grad()
    def decay(optimizer: Any, arguments: Any, named: Any) -> None:
        # DeepSpeed steps one of its groups of weights at a time, and puts nothing else in there
        for group in optimizer.param_groups:
            for weight in group["params"]:
                base = next(b for m, b in zip(masters, bases, strict=True) if m is weight)
                _move(weight, base, share=group["lr"] * strength)

    for optimizer in (zero.optimizer, getattr(zero, "backup_optimizer", None)):
        if optimizer is not None:
            optimizer.register_step_pre_hook(decay)


def _move(weight: Tensor, base: Tensor, *, share: float) -> None:
    """In pieces: the base in fp32 would take as much as the weights of the whole group."""
    for part, target in zip(
        weight.split(_NUMBERS_AT_ONCE), base.split(_NUMBERS_AT_ONCE), strict=True
    ):
        part.lerp_(target.to(part.dtype), share)
