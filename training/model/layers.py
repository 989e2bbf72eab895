"""The decoder layers of a model."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(lm: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, whatever the architecture calls them."""
    count = lm.config.get_text_config().num_hidden_layers
    for module in lm.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"model: no list of {count} layers in {type(lm.base_model).__name__}")
