"""Other weights beside those that are trained: their average, and a teacher's predictions.

B rows, S tokens of this rank's sequence shard; K likeliest tokens, J = K + 1 with all others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from common.commands import command
from data_prep.shards import PackIndex, Scores
from training.config.recipe import Recipe
from training.config.teacher import Teacher as Settings
from training.data.joined_pack import JoinedScores, SamplePack, SampleTopK
from training.data.stream import MicroBatch
from training.entrodrop.distillation import OutputLayer, TopK
from training.model.engine import Engine
from training.model.inputs import HiddenView, ModelInputs, TeacherView, TopKView
from training.model.shadow import AveragedWeights, BaseOfAdapter, ShadowWeights
from training.ranks.dist import Layout
from training.run.plan import Plan


class Teacher(ABC):
    """Gives the predictions that a step learns from beside its text."""

    def __init__(self, settings: Settings, *, num_domain_samples: int) -> None:
        """`num_domain_samples`: samples from this number on are of replay."""
        self._settings, self._num_domain_samples = settings, num_domain_samples

    def begin_step(self, batches: list[MicroBatch]) -> None:  # noqa: B027  (not all need it)
        """Look at all micro-batches of a step."""

    @abstractmethod
    def view(self, batch: MicroBatch, micro_step: int) -> TeacherView:
        """Of a micro-batch of the step that has begun."""

    def weights_BS(self, batch: MicroBatch) -> Tensor:
        """Its part of the loss of each token, fp32: the weight, or 0 where it does not count."""
        counts = [[self.counts(sample)] for sample in batch.sample_ids]
        weights_B1 = torch.tensor(counts, device=batch.ids_BS.device) * self._settings.weight
        return weights_B1.float().expand(batch.ids_BS.shape)

    def counts(self, sample: int) -> bool:
        """Whether it teaches a sample."""
        if self._settings.on == "all":
            return True
        return (sample >= self._num_domain_samples) == (self._settings.on == "replay")


class RunningTeacher(Teacher):
    """One forward pass more for each micro-batch, without gradient."""

    def __init__(
        self,
        engine: Engine,
        weights: ShadowWeights | BaseOfAdapter,
        settings: Settings,
        *,
        num_domain_samples: int,
    ) -> None:
        super().__init__(settings, num_domain_samples=num_domain_samples)
        self._engine, self._weights = engine, weights
        self._hidden_BSD: list[Tensor] = []
        self._layer: OutputLayer | None = None

    def begin_step(self, batches: list[MicroBatch]) -> None:
        """All at once, so that weights change hands once."""
        self._hidden_BSD = []
        with self._weights.in_use():
            for batch in batches:
                hidden_BSD, self._layer = self._engine.predict(ModelInputs.of(batch))
                self._hidden_BSD.append(hidden_BSD)

    def view(self, batch: MicroBatch, micro_step: int) -> HiddenView:
        assert self._layer is not None
        return HiddenView(self.weights_BS(batch), self._hidden_BSD[micro_step], self._layer)


class StoredTeacher(Teacher):
    """Reads what a model predicted when it scored the corpus."""

    def __init__(
        self,
        layout: Layout,
        pack: SamplePack,
        stored: SampleTopK,
        settings: Settings,
        *,
        num_domain_samples: int,
    ) -> None:
        super().__init__(settings, num_domain_samples=num_domain_samples)
        self._pack, self._stored = pack, stored
        self._shard = pack.seq_len // layout.sp_size
        # a position predicts the token after it: the last of a shard the first of the next
        self._first = layout.sp_rank * self._shard + 1

    def view(self, batch: MicroBatch, micro_step: int) -> TopKView:
        rows = [
            self._stored.top_k(self._pack, max(sample, 0), first=self._first, count=self._shard)
            for sample in batch.sample_ids  # those that only fill the batch have no targets
        ]
        ids_BSK, log_probs_BSJ = (
            torch.from_numpy(np.stack(column)).to(batch.ids_BS.device)
            for column in zip(*rows, strict=True)
        )
        weights_BS = self.weights_BS(batch).masked_fill(log_probs_BSJ[..., 0].isnan(), 0.0)
        return TopKView(weights_BS, TopK(ids_BSK, log_probs_BSJ))


def open_predictions(
    recipe: Recipe, pack: PackIndex, replay: PackIndex | None
) -> tuple[Scores | None, Scores | None]:
    """What a recipe's teacher has stored: of its corpus and of replay, each where it teaches.

    Raises:
        ValueError: for scores that are not there, hold no predictions, or do not go together.
    """
    settings = recipe.teacher
    if settings is None or settings.scores is None:
        return None, None
    own = None if settings.on == "replay" else _with_top_k(pack, settings.scores)
    other = None
    if replay is not None and settings.on != "domain":
        other = _with_top_k(replay, settings.scores)
    if own and other and own.num_kept != other.num_kept:
        raise ValueError(
            f"teacher.scores: {own.folder} keeps the {own.num_kept} likeliest tokens, "
            f"{other.folder} {other.num_kept}: make both with the same --top-k"
        )
    return own, other


def _with_top_k(pack: PackIndex, name: str) -> Scores:
    try:
        scores = pack.corpus.open_scores(name)
    except ValueError as error:
        raise ValueError(f"teacher.scores: {error}") from None
    if not scores.num_kept:
        how = command(f"data_prep score {pack.corpus.folder} --top-k 32 --name {name} ...")
        raise ValueError(
            f"teacher.scores: {scores.folder} holds no likeliest tokens; make new ones with "
            f"`{how} --overwrite`"
        )
    return scores


def join_predictions(
    predictions: tuple[Scores | None, Scores | None], replay: PackIndex | None
) -> SampleTopK | None:
    """Of what a run trains on; None for a run without stored ones."""
    own, other = predictions
    if replay is None or (own is None and other is None):
        return own
    return JoinedScores(own, other)


def make_average(recipe: Recipe, engine: Engine, plan: Plan) -> AveragedWeights | None:
    """For a recipe with `ema`, from the weights as they are."""
    if recipe.ema is None:
        return None
    steps_per_epoch = plan.samples_per_epoch / plan.samples_per_step
    return AveragedWeights(engine, decay=recipe.ema.decay(steps_per_epoch=steps_per_epoch))


def make_teacher(
    recipe: Recipe,
    engine: Engine,
    average: AveragedWeights | None,
    *,
    pack: SamplePack,
    num_domain_samples: int,
    stored: SampleTopK | None = None,
) -> Teacher | None:
    """Before a checkpoint is loaded, when the engine has the weights that the run began with.

    Args:
        pack: what the run trains on.
        num_domain_samples: how many of its samples are no replay, the first ones.
        stored: predictions of all of it, for a teacher that reads them.
    """
    settings = recipe.teacher
    if settings is None:
        return None
    if stored is not None:
        return StoredTeacher(
            engine.layout, pack, stored, settings, num_domain_samples=num_domain_samples
        )
    weights: ShadowWeights | BaseOfAdapter | None = average
    if settings.kind == "base":
        weights = BaseOfAdapter(engine) if recipe.adapter else ShadowWeights(engine)
    assert weights is not None  # the recipe has `ema`
    return RunningTeacher(engine, weights, settings, num_domain_samples=num_domain_samples)
