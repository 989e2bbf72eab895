"""The attention and the MLP of a decoder layer, whatever the architecture calls them."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

_ATTENTION = re.compile(r"^(self_)?(attn|attention)$|^linear_attn$")
_MLP = re.compile(r"^(mlp|ffn|feed_forward|feedforward)$")
_MATRIX = re.compile(r"Linear|Conv1D")  # by name: ours and third parties', under ZeRO-3 as well


def attention_of(layer: nn.Module) -> nn.Module:
    """The module whose output attention adds to the residual stream.

    Raises:
        ValueError: for a layer without one.
    """
    for name, part in layer.named_children():
        adds_residual = "residual" in inspect.signature(part.forward).parameters  # BLOOM's does
        if _ATTENTION.search(name) and not adds_residual:
            return part
    raise _not_found(layer, "attention_output_dropout", "attention")


def last_matrix_of_mlp(layer: nn.Module) -> nn.Module:
    """The matrix that leads from the inner channels of the MLP back to the residual stream.

    Raises:
        ValueError: for a layer without a plain MLP, such as one with experts.
    """
    within = [part for name, part in layer.named_children() if _MLP.search(name)]
    for place in (*within, layer):  # OPT has its matrices in the layer itself
        matrices = [part for part in place.children() if _MATRIX.search(type(part).__name__)]
        if len(matrices) > 1:
            return max(matrices, key=_inputs_for_each_output)
    raise _not_found(layer, "mlp_dropout", "plain MLP")


def _inputs_for_each_output(matrix: Any) -> float:
    if hasattr(matrix, "nf"):  # Conv1D of GPT-2
        return float(matrix.nx / matrix.nf)
    return float(matrix.in_features / matrix.out_features)


def _not_found(layer: nn.Module, regulariser: str, part: str) -> ValueError:
    parts, kind = ", ".join(name for name, _ in layer.named_children()), type(layer).__name__
    return ValueError(f"regularisers: {regulariser}: no {part} is known in {kind} (it has {parts})")
