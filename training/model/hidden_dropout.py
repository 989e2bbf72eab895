"""The baseline hidden dropout: channels of hidden states after every layer, by counter.

B rows, S tokens of this rank's sequence shard, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.entrodrop.counter_rng import HIDDEN_STREAM, token_keys, uniform_from_keys

_STREAMS_A_LAYER = 16  # above those of other uses


class HiddenDropout:
    """Hooks after the decoder layers; without a rate they do nothing.

    A channel of a token is set to 0 with probability `rate` and the others are divided by
    1 - rate. The draw is a function of seed, layer, token and channel: the same on every layout,
    after a resume, and when activation checkpointing computes a layer again.
    """

    def __init__(self, layers: nn.ModuleList, *, rate: float, seed: int) -> None:
        self.rate = rate
        self._seed = seed
        self._token_index_BS: Tensor | None = None
        for number, layer in enumerate(layers):
            layer.register_forward_hook(self._hook(number))

    def begin(self, token_index_BS: Tensor | None) -> None:
        """Set the tokens of the coming forward pass."""
        self._token_index_BS = token_index_BS

    def _hook(self, layer: int) -> Any:
        def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not self.rate or not module.training or self._token_index_BS is None:
                return output
            if isinstance(output, tuple):
                return (self.apply(output[0], layer=layer), *output[1:])
            return self.apply(output, layer=layer)

        return drop

    def apply(self, hidden_BSD: Tensor, *, layer: int) -> Tensor:
        """Drop channels after a layer, counted from 0."""
        assert self._token_index_BS is not None
        use = (HIDDEN_STREAM, layer)
        return drop_channels(
            hidden_BSD, self._token_index_BS, rate=self.rate, seed=self._seed, use=use
        )


def drop_channels(
    x_BSD: Tensor, token_index_BS: Tensor, *, rate: float, seed: int, use: tuple[int, int]
) -> Tensor:
    """Set channels to 0 with probability `rate` and divide the others by 1 - rate.

    Args:
        use: a stream of `counter_rng`, and which of its layers, counted from 0.
    """
    stream, layer = use
    num_channels = x_BSD.shape[-1]
    channels_D = torch.arange(num_channels, device=x_BSD.device)
    keys_BSD = token_keys(
        token_index_BS[..., None] * num_channels + channels_D,
        seed=seed,
        stream=stream + _STREAMS_A_LAYER * (layer + 1),
    )
    is_kept_BSD = uniform_from_keys(keys_BSD) >= rate
    return x_BSD * is_kept_BSD / (1 - rate)
