"""What training uses of Liger, for Qwen3, in torch: Triton's kernels need a GPU.

It replaces the same names in transformers' module and the same modules of a model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType, ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "liger_kernel.transformers.monkey_patch"


@contextmanager
def stand_in_liger(*, offset: float = 0.0) -> Iterator[list[int]]:
    """Within it, `import liger_kernel` finds the stand-in.

    Args:
        offset: of the norms' weights; one other than 0 is wrong.

    Yields:
        A list that grows by the number of heads at each rotation.
    """
    rotated: list[int] = []

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        rotated.append(q.shape[1])
        return _rotate(q, cos, sin), _rotate(k, cos, sin)

    def apply(*, rope: bool, cross_entropy: bool, fused_linear_cross_entropy: bool, model: Any):
        from transformers.models.qwen3 import modeling_qwen3

        assert rope and not cross_entropy and not fused_linear_cross_entropy
        modeling_qwen3.apply_rotary_pos_emb = rotate
        modeling_qwen3.Qwen3RMSNorm = modeling_qwen3.Qwen3MLP = nn.Module
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.offset, module.in_place = offset, True
                _replace(module, _norm, "LigerRMSNorm")
            elif hasattr(module, "gate_proj"):
                _replace(module, _gated, "LigerSwiGLUMLP")

    modules = {"liger_kernel": ModuleType("liger_kernel")}
    modules |= {name: ModuleType(name) for name in ("liger_kernel.transformers", NAME)}
    modules[NAME].MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": apply}
    with patch.dict(sys.modules, modules):
        yield rotated


def _replace(module: nn.Module, forward: Any, name: str) -> None:
    vars(module).update(forward=MethodType(forward, module), _get_name=lambda: name)


def _norm(self: Any, x: Tensor) -> Tensor:
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.variance_epsilon).to(x.dtype)
    return normed * (self.offset + self.weight)


def _gated(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(F.silu(self.gate_proj(x).float()).to(x.dtype) * self.up_proj(x))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return x * cos + torch.cat([-second, first], dim=-1) * sin
