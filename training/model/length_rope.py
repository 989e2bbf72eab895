"""Rotary embeddings whose frequencies depend on a document's length, for each document its own.

transformers takes one length for a whole batch, that of its longest row, and a rank with a part of
a sequence does not know even that. Example, longrope with 4,096 original positions: the documents
of a sample that have more tokens get the long factors, the others the short ones.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from training.model.inputs import ModelInputs

LENGTH_DEPENDENT = ("dynamic", "longrope")


class LengthRope:
    """Takes the place of transformers' own update in the rotary embeddings of a model."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self._inputs: ModelInputs | None = None
        for module in lm.modules():
            if _types_of(module) & set(LENGTH_DEPENDENT):
                plain = inspect.unwrap(type(module).forward)
                module.forward = MethodType(self._forward(plain), module)

    def begin(self, inputs: ModelInputs) -> None:
        """Set the documents of the coming forward pass."""
        self._inputs = inputs

    def _forward(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @torch.no_grad()
        def forward(
            module: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None
        ) -> tuple[Tensor, ...]:
            given = {} if layer_type is None else {"layer_type": layer_type}
            rope_type, first, last = _range_of(module, layer_type)
            if rope_type not in LENGTH_DEPENDENT:
                return plain(module, x, position_ids, **given)
            assert self._inputs is not None
            lengths, tokens_BS = _lengths_of(self._inputs)
            bounded_BS = tokens_BS.clamp(first, last)
            turned: tuple[Tensor, ...] = ()
            for length in sorted({min(max(each, first), last or each) for each in lengths}):
                frequencies, _ = ROPE_INIT_FUNCTIONS[rope_type](
                    module.config, x.device, seq_len=length, **given
                )
                name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
                getattr(module, name).copy_(frequencies)
                own = plain(module, x, position_ids, **given)
                has_length = (bounded_BS == length)[..., None]
                turned = tuple(
                    torch.where(has_length, new, old)
                    for new, old in zip(own, turned or own, strict=True)
                )
            return turned

        return forward


def _types_of(module: nn.Module) -> set[str]:
    found = getattr(module, "rope_type", None)
    return set(found.values()) if isinstance(found, dict) else {str(found)}


def _range_of(module: Any, layer_type: str | None) -> tuple[str, int, int | None]:
    """Type, and the lengths below and above which the frequencies change no more."""
    rope = module.config.rope_parameters
    if layer_type is not None:
        rope = rope[layer_type]
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        return "longrope", original, original + 1
    return rope["rope_type"], module.config.max_position_embeddings, None


def _lengths_of(inputs: ModelInputs) -> tuple[list[int], Tensor]:
    """Of all documents, and of that of each token of the shard."""
    ends = inputs.documents.boundaries
    lengths = [end - start for start, end in pairwise(ends)]
    if inputs.document_tokens_BS is not None:
        return lengths, inputs.document_tokens_BS
    assert inputs.ids_BS.numel() == ends[-1], "a shard does not say how long its documents are"
    sizes = torch.tensor(lengths, device=inputs.ids_BS.device)
    return lengths, sizes.repeat_interleave(sizes).view_as(inputs.ids_BS)
