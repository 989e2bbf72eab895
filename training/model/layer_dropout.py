"""Dropout inside and behind the decoder layers, by counter: channels, and whole layers.

B rows, S tokens of this rank's sequence shard, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.entrodrop.counter_rng import (
    ATTENTION_STREAM,
    DEPTH_STREAM,
    HIDDEN_STREAM,
    MLP_STREAM,
    token_keys,
    uniform_from_keys,
)
from training.model.inputs import ModelRegularisation
from training.model.layer_parts import attention_of, last_matrix_of_mlp

_STREAMS_A_LAYER = 16  # above those of other uses
_NUMBERS_AT_ONCE = 1 << 23
"""Whose keys are computed: 64 MiB, a few of which are held at a time."""


class LayerDropout:
    """Hooks on the decoder layers, where a rate is given.

    What drops is set to 0 and the rest is divided by 1 - rate. Each draw is a function of seed,
    layer and token, or sample: the same on every layout, after a resume, and when activation
    checkpointing computes a layer again. A layer that a sample skips is computed all the same,
    since every rank must make the same calls of modules.
    """

    def __init__(self, layers: nn.ModuleList, rates: ModelRegularisation, *, seed: int) -> None:
        """Find the parts that rates are given for.

        Raises:
            ValueError: naming the layer that has no such part.
        """
        self.rates = rates
        self._seed, self._num_layers = seed, len(layers)
        self._token_index_BS: Tensor | None = None
        self._visits_B11: Tensor | None = None
        for number, layer in enumerate(layers):
            if rates.stochastic_depth:
                layer.register_forward_hook(self._skip_hook(number), with_kwargs=True)
            if rates.hidden_dropout:
                hook = self._hook("hidden_dropout", HIDDEN_STREAM, number)
                layer.register_forward_hook(hook)
            if rates.mlp_dropout:
                hook = self._input_hook("mlp_dropout", MLP_STREAM, number)
                last_matrix_of_mlp(layer).register_forward_pre_hook(hook)
            if rates.attention_output_dropout:
                hook = self._hook("attention_output_dropout", ATTENTION_STREAM, number)
                attention_of(layer).register_forward_hook(hook)

    def begin(self, token_index_BS: Tensor | None, visits: tuple[int, ...] = ()) -> None:
        """Set tokens and samples of the coming forward pass."""
        self._token_index_BS = token_index_BS
        if self.rates.stochastic_depth and token_index_BS is not None:
            visits_B11 = torch.tensor(visits)[:, None, None]
            self._visits_B11 = visits_B11.to(token_index_BS.device, non_blocking=True)

    def _hook(self, name: str, stream: int, layer: int) -> Any:
        def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
            return _of_first(output, lambda hidden: self._drop(module, hidden, name, stream, layer))

        return drop

    def _input_hook(self, name: str, stream: int, layer: int) -> Any:
        def drop(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
            return (self._drop(module, inputs[0], name, stream, layer), *inputs[1:])

        return drop

    def _drop(
        self, module: nn.Module, hidden_BSD: Tensor, name: str, stream: int, layer: int
    ) -> Tensor:
        rate: float = getattr(self.rates, name)
        if not rate or not module.training or self._token_index_BS is None:
            return hidden_BSD
        return self.apply(hidden_BSD, rate=rate, stream=stream, layer=layer)

    def apply(self, hidden_BSD: Tensor, *, rate: float, stream: int, layer: int) -> Tensor:
        """Drop channels of a layer, counted from 0."""
        assert self._token_index_BS is not None
        use = (stream, layer)
        return drop_channels(hidden_BSD, self._token_index_BS, rate=rate, seed=self._seed, use=use)

    def _skip_hook(self, layer: int) -> Any:
        """The rate rises linearly with depth: the layer n of L has n / L of the last one's."""

        def skip(module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> Any:
            rate = self.rates.stochastic_depth * (layer + 1) / self._num_layers
            if not rate or not module.training or self._token_index_BS is None:
                return output
            assert self._visits_B11 is not None
            stream = DEPTH_STREAM + _STREAMS_A_LAYER * (layer + 1)
            keys_B11 = token_keys(self._visits_B11, seed=self._seed, stream=stream)
            is_kept_B11 = uniform_from_keys(keys_B11) >= rate
            before_BSD = inputs[0] if inputs else named["hidden_states"]

            def mix(hidden_BSD: Tensor) -> Tensor:
                return before_BSD + (hidden_BSD - before_BSD) * is_kept_B11 / (1 - rate)

            return _of_first(output, mix)

        return skip


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
    is_kept = []
    for tokens_C in token_index_BS.flatten().split(max(1, _NUMBERS_AT_ONCE // num_channels)):
        index_CD = tokens_C[:, None] * num_channels + channels_D
        keys_CD = token_keys(index_CD, seed=seed, stream=stream + _STREAMS_A_LAYER * (layer + 1))
        is_kept.append(uniform_from_keys(keys_CD) >= rate)
    return x_BSD * torch.cat(is_kept).view(x_BSD.shape) / (1 - rate)


def _of_first(output: Any, change: Any) -> Any:
    """A module's output with its hidden states changed, which are the first of several."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
