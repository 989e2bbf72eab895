"""Other weights beside those that are trained: their average, and a teacher's predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from training.config.recipe import Recipe
from training.config.teacher import Teacher as Settings
from training.data.stream import MicroBatch
from training.entrodrop.distillation import OutputLayer
from training.model.engine import Engine
from training.model.inputs import ModelInputs, TeacherView
from training.model.shadow import AveragedWeights, BaseOfAdapter, ShadowWeights
from training.run.plan import Plan


class Teacher:
    """One forward pass more for each micro-batch, without gradient."""

    def __init__(
        self,
        engine: Engine,
        weights: ShadowWeights | BaseOfAdapter,
        settings: Settings,
        *,
        num_domain_samples: int,
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


def make_average(recipe: Recipe, engine: Engine, plan: Plan) -> AveragedWeights | None:
    """For a recipe with `ema`, from the weights as they are."""
    if recipe.ema is None:
        return None
    steps_per_epoch = plan.samples_per_epoch / plan.samples_per_step
    return AveragedWeights(engine, decay=recipe.ema.decay(steps_per_epoch=steps_per_epoch))


def make_teacher(
    recipe: Recipe, engine: Engine, average: AveragedWeights | None, *, num_domain_samples: int
) -> Teacher | None:
    """Before a checkpoint is loaded, when the engine has the weights that the run began with."""
    settings = recipe.teacher
    if settings is None:
        return None
    weights: ShadowWeights | BaseOfAdapter | None = average
    if settings.kind == "base":
        weights = BaseOfAdapter(engine) if recipe.adapter else ShadowWeights(engine)
    assert weights is not None  # the recipe has `ema`
    return Teacher(engine, weights, settings, num_domain_samples=num_domain_samples)
