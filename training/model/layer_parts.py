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
    raise _not_found(layer, "regularisers: attention_output_dropout", "attention")


def last_matrix_of_mlp(layer: nn.Module) -> nn.Module:
    """The matrix that leads from the inner channels of the MLP back to the residual stream.

    Raises:
        ValueError: for a layer without a plain MLP, such as one with experts.
    """
    for place in (*_named_as_mlp(layer), layer):  # OPT has its matrices in the layer itself
        if len(matrices := _matrices(place)) > 1:
            return max(matrices, key=_inputs_for_each_output)
    raise _not_found(layer, "regularisers: mlp_dropout", "plain MLP")


def mlp_of(layer: nn.Module) -> nn.Module:
    """The module that is its MLP, a function of hidden states alone.

    Raises:
        ValueError: for a layer without a plain MLP of its own, such as one with experts.
    """
    for part in _named_as_mlp(layer):
        arguments = inspect.signature(part.forward).parameters.values()
        needed = [each for each in arguments if each.default is each.empty]
        if len(_matrices(part)) > 1 and len(needed) == 1:
            return part
    raise _not_found(layer, "model.tiled_mlp", "plain MLP")


def _named_as_mlp(layer: nn.Module) -> list[nn.Module]:
    return [part for name, part in layer.named_children() if _MLP.search(name)]


def _matrices(place: nn.Module) -> list[nn.Module]:
    return [part for part in place.children() if _MATRIX.search(type(part).__name__)]


def _inputs_for_each_output(matrix: Any) -> float:
    if hasattr(matrix, "nf"):  # Conv1D of GPT-2
        return float(matrix.nx / matrix.nf)
    return float(matrix.in_features / matrix.out_features)


def _not_found(layer: nn.Module, key: str, part: str) -> ValueError:
    parts, kind = ", ".join(name for name, _ in layer.named_children()), type(layer).__name__
    return ValueError(f"{key}: no {part} is known in {kind} (it has {parts})")
