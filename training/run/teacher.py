"""A teacher in the steps of a run: what it predicts of a step's tokens, and for which it counts."""

from __future__ import annotations

import torch
from torch import Tensor

from training.config.teacher import Teacher as Settings
from training.data.stream import MicroBatch
from training.entrodrop.distillation import OutputLayer
from training.model.engine import Engine
from training.model.inputs import ModelInputs, TeacherView
from training.model.shadow import ShadowWeights


class Teacher:
    """One forward pass more for each micro-batch, without gradient."""

    def __init__(
        self, engine: Engine, weights: ShadowWeights, settings: Settings, *, num_domain_samples: int
    ) -> None:
        """`num_domain_samples`: samples from this number on are of replay."""
        self._engine, self._weights, self._settings = engine, weights, settings
        self._num_domain_samples = num_domain_samples
        self._hidden_BSD: list[Tensor] = []
        self._layer: OutputLayer | None = None

    def begin_step(self, batches: list[MicroBatch]) -> None:
        """Look at all micro-batches of a step, so that weights change hands once."""
        self._hidden_BSD = []
        with self._weights.in_use():
            for batch in batches:
                hidden_BSD, self._layer = self._engine.predict(ModelInputs.of(batch))
                self._hidden_BSD.append(hidden_BSD)

    def view(self, batch: MicroBatch, micro_step: int) -> TeacherView:
        """Of a micro-batch of the step that has begun."""
        assert self._layer is not None
        sample_B1 = torch.tensor(batch.sample_ids, device=batch.ids_BS.device)[:, None]
        counts_B1 = torch.ones_like(sample_B1, dtype=torch.bool)
        if self._settings.on != "all":
            is_replay_B1 = sample_B1 >= self._num_domain_samples
            counts_B1 = is_replay_B1 if self._settings.on == "replay" else ~is_replay_B1
        weights_BS = (counts_B1 * self._settings.weight).float().expand(batch.ids_BS.shape)
        return TeacherView(self._hidden_BSD[micro_step], self._layer, weights_BS)
