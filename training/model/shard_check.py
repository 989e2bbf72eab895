"""Whether a model's tokens see each other in its attention alone, as shards of a sequence need.

B rows, T tokens of a row, H heads, E numbers a head.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from training.model.attention import ATTENTION_NAME
from training.model.inputs import ModelInputs

if TYPE_CHECKING:
    from training.model.causal_lm import CausalLMWithEntropy

_ROUNDING_NATS = 1e-4


@torch.no_grad()
def refuse_mixing(model: CausalLMWithEntropy, inputs: ModelInputs) -> None:
    """Run whole rows and halves of them, with an attention that shows each token itself alone.

    Raises:
        ValueError: where losses differ; a rank has a shard, wherever that begins.
    """
    attentions = copy(ALL_ATTENTION_FUNCTIONS._local_mapping)
    ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] = _own_values
    try:
        _compare_halves(model, inputs)
    finally:  # not what is registered for all, which would then be hidden here from then on
        ALL_ATTENTION_FUNCTIONS._local_mapping = attentions


def _compare_halves(model: CausalLMWithEntropy, inputs: ModelInputs) -> None:
    whole_BT = model(inputs)[0]
    half = inputs.ids_BS.shape[1] // 2
    for own in (slice(0, half), slice(half, None)):
        by_token: dict[str, Any] = {
            name: value[:, own] for name, value in vars(inputs).items() if isinstance(value, Tensor)
        }
        shard = replace(inputs, **by_token)
        if not bool(((model(shard)[0] - whole_BT[:, own]).abs() <= _ROUNDING_NATS).all()):
            raise ValueError(
                "outside its attention, too, a token sees others, of which a rank would have a "
                "part; set train.sequence_parallel_size to 1"
            )


def _own_values(
    module: nn.Module, query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    repeats = query_BHTE.shape[1] // value_BHTE.shape[1]
    return value_BHTE.repeat_interleave(repeats, dim=1).transpose(1, 2), None
