"""Other weights of the same model: an average or those before, in ranks' parts; or its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from training.model.adapter import switched_off
from training.model.engine import Engine
from training.model.own_parts import whole_shape


class ShadowWeights:
    """The weights that are trained, as they were when it was made.

    Each rank has its share of them, in their own dtype.
    """

    def __init__(self, engine: Engine) -> None:
        assert engine.parts is not None
        self._engine, self._parts = engine, engine.parts
        self._parameters: dict[str, Any] = engine.trained
        self._shards = self._now()

    def _now(self) -> dict[str, Tensor]:
        """Copies of what is to be kept of the weights as they are."""
        return self._own()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model computes with them within it; every rank enters and leaves together.

        It costs each rank its share of the weights once more, in their own dtype.
        """
        own = self._own()
        self._replace(self._shards)
        try:
            yield
        finally:
            self._replace(own)

    def _own(self) -> dict[str, Tensor]:
        return {n: self._parts.of_weight(weight).clone() for n, weight in self._parameters.items()}

    @torch.no_grad()
    def _replace(self, shards: Mapping[str, Tensor]) -> None:
        for name, weight in self._parameters.items():
            part = self._parts.of_weight(weight)
            part.copy_(shards[name].view_as(part))
        self._parts.publish(self._parameters.values())


class BaseOfAdapter:
    """The weights beside which an adapter trains: at hand by switching it off, without a copy."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model computes with them alone within it."""
        with switched_off(self._engine.model.lm):
            yield


class AveragedWeights(ShadowWeights):
    """Their exponential moving average, fp32, on the device of the optimizer's fp32 weights."""

    def __init__(self, engine: Engine, *, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            decay: factor of the old average in each update.
        """
        super().__init__(engine)
        self._decay = decay

    def _now(self) -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in self._masters()}

    def restart(self) -> None:
        """Forget the past: the average is what the weights are now."""
        self._shards = self._now()

    @torch.no_grad()
    def update(self) -> None:
        """After a step that has changed the weights."""
        for name, weight in self._masters():
            self._shards[name].lerp_(weight, 1.0 - self._decay)

    @property
    def shards(self) -> dict[str, Tensor]:
        """This rank's, by name; joined by rank they are the whole weights, and padding."""
        return self._shards

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the whole weights."""
        return {name: whole_shape(weight) for name, weight in self._parameters.items()}

    @property
    def aliases(self) -> dict[str, str]:
        """Further names of weights that have several, such as a tied output layer's."""
        lm = self._engine.model.lm
        first = {id(weight): name for name, weight in self._parameters.items()}
        every = lm.named_parameters(remove_duplicate=False)
        return {
            name: first[id(weight)]
            for name, weight in every
            if name not in self._parameters and id(weight) in first
        }

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What a model keeps beside its weights, which is not averaged."""
        lm = self._engine.model.lm
        kept = lm.state_dict().keys()
        return {name: buffer for name, buffer in lm.named_buffers() if name in kept}

    def load(self, shards: Mapping[str, Tensor]) -> None:
        """Go on with what the same rank of as many has saved."""
        for name, shard in self._shards.items():
            shard.copy_(shards[name])

    def load_whole(self, weights: Mapping[str, Tensor]) -> None:
        """Go on with what other ranks have saved, each taking its part of the whole weights."""
        for name, shard in self._shards.items():
            begin = self._parts.begin(self._parameters[name])
            part = weights[name].flatten()[begin : begin + shard.numel()]
            shard.zero_()[: part.numel()].copy_(part)

    def _masters(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._parameters.items():
            yield name, self._parts.of_master(weight)
