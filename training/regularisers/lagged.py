"""EntroDrop without an extra pass: this step's entropies against the last step's threshold.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from training.config.dropout import Dropout
from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.entrodrop.mask import draw_guided_drops, select_low_tokens
from training.model.inputs import Scored
from training.regularisers.base import Regulariser, RunParts, SavedThreshold, Step, StepDropout
from training.regularisers.drop_sets import (
    drop_rates,
    gamma_at,
    mean_scale,
    sample_scales_of,
)


class LaggedEntroDrop(Regulariser):
    """Decides what is left out of the loss after the training forward, from its entropies.

    In the first step of a run there is no previous step, and nothing drops. The share that drops is
    close to the one asked: exact only if entropies do not change.
    """

    waits_for_forward = True
    drops_losses = True

    def __init__(
        self,
        settings: Dropout,
        *,
        measure: Literal["shannon", "nll"],
        seed: int,
        threshold: SavedThreshold | None = None,
    ) -> None:
        self._settings, self._measure, self._seed = settings, measure, seed
        self._low = threshold.low_set(seed=seed) if threshold else None
        self._gamma = 0.0
        self._values_BS: list[Tensor] = []
        self._index_BS: list[Tensor] = []

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        return cls(
            recipe.dropout,
            measure=recipe.entropy.measure,
            seed=recipe.seed,
            threshold=parts.threshold,
        )

    @property
    def threshold(self) -> SavedThreshold | None:
        """Of the step that ended last."""
        return SavedThreshold.of(self._low) if self._low else None

    def begin_step(self, step: Step) -> StepDropout:
        self._values_BS, self._index_BS = [], []
        self._gamma = 0.0 if self._low is None else gamma_at(self._settings, step.trained_frac)
        if self._low is None or self._gamma == 0.0:
            return StepDropout()
        rate = self._gamma * self._settings.quantile * mean_scale(self._settings)
        return StepDropout(
            gamma=self._gamma,
            rate_asked=rate,
            threshold_nats=self._low.quantile.threshold,
            kept_share=1.0 - rate if self._settings.renormalise else 1.0,
        )

    def target_drops_BS(
        self, batch: MicroBatch, micro_step: int, scored: Scored | None
    ) -> Tensor | None:
        if self._low is None or self._gamma == 0.0:
            return None
        assert scored is not None
        value_BS = self._value_BS(batch, scored)
        # A position's entropy belongs to the token after it, and so do the identity and draw.
        index_BS = batch.token_index_BP[:, 1:]
        return draw_guided_drops(
            self._low.contains(value_BS, index_BS),
            value_BS.isfinite(),
            index_BS,
            rates=drop_rates(self._settings, gamma=self._gamma),
            seed=self._seed,
            scale=sample_scales_of(self._settings, [batch], seed=self._seed),
        )

    def observe(self, batch: MicroBatch, micro_step: int, scored: Scored) -> None:
        self._values_BS.append(self._value_BS(batch, scored))
        self._index_BS.append(batch.token_index_BP[:, 1:])

    def _value_BS(self, batch: MicroBatch, scored: Scored) -> Tensor:
        """+inf where there is no target or no number."""
        value_BS = scored.nll_BS if self._measure == "nll" else scored.entropy_BS
        value_BS = value_BS.detach().float()
        return torch.where(batch.is_target_BS & value_BS.isfinite(), value_BS, math.inf)

    def end_step(self, step: Step) -> None:
        """Find the threshold for the next step."""
        self._low = select_low_tokens(
            torch.stack(self._values_BS).flatten(),
            torch.stack(self._index_BS).flatten(),
            q=self._settings.quantile,
            seed=self._seed,
        )
