"""Loss dropout without a pass of its own: this step's entropies against the last step's threshold.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.dropout.policy import SavedThreshold, StepDropout, drop_rates, gamma_at
from training.entrodrop.mask import draw_guided_drops, select_low_tokens


class LaggedDropout:
    """Decides what leaves the loss when the training forward has given its entropies.

    In the first step of a run there is no step before, and nothing drops. The share that drops is
    about the one asked: it is exact only if entropies stay as they were.
    """

    def __init__(self, recipe: Recipe, *, threshold: SavedThreshold | None) -> None:
        self._recipe = recipe
        self._low = threshold.low_set(seed=recipe.seed) if threshold else None
        self._gamma = 0.0
        self._values_BS: list[Tensor] = []
        self._index_BS: list[Tensor] = []

    @property
    def threshold(self) -> SavedThreshold | None:
        """Of the step that ended last; for a checkpoint."""
        return SavedThreshold.of(self._low) if self._low else None

    def begin_step(self, *, progress: float) -> StepDropout | None:
        """What is known before the step's passes; None when nothing drops in it."""
        self._values_BS, self._index_BS = [], []
        self._gamma = 0.0 if self._low is None else gamma_at(self._recipe, progress=progress)
        if self._low is None or self._gamma == 0.0:
            return None
        return StepDropout(
            where="loss",
            gamma=self._gamma,
            rate_asked=self._gamma * self._recipe.dropout.quantile,
            threshold_nats=self._low.quantile.threshold,
            dropped_BS1=[],
        )

    def target_drops_BS(self, batch: MicroBatch, nll_BS: Tensor, entropy_BS: Tensor) -> Tensor:
        """Positions whose target leaves the loss, bool `[B, S]`."""
        value_BS = nll_BS if self._recipe.entropy.measure == "nll" else entropy_BS
        value_BS = value_BS.detach().float()
        is_known_BS = batch.is_target_BS & value_BS.isfinite()
        value_BS = torch.where(is_known_BS, value_BS, math.inf)
        # A position's entropy belongs to the token behind it, and so do the identity and draw.
        index_BS = batch.token_index_BS1[:, 1:]
        self._values_BS.append(value_BS)
        self._index_BS.append(index_BS)
        if self._low is None or self._gamma == 0.0:
            return torch.zeros_like(batch.is_target_BS)
        is_low_BS = self._low.contains(value_BS, index_BS)
        return draw_guided_drops(
            is_low_BS,
            is_known_BS,
            index_BS,
            rates=drop_rates(self._recipe, gamma=self._gamma),
            seed=self._recipe.seed,
        )

    def end_step(self) -> None:
        """Find the threshold for the next step; every rank calls it, in every step."""
        self._low = select_low_tokens(
            torch.stack(self._values_BS).flatten(),
            torch.stack(self._index_BS).flatten(),
            q=self._recipe.dropout.quantile,
            seed=self._recipe.seed,
        )


def lagged_dropout(
    recipe: Recipe, *, threshold: SavedThreshold | None = None
) -> LaggedDropout | None:
    """For recipes with `entropy.threshold: lagged`; None for others."""
    if recipe.regulariser != "entrodrop" or recipe.entropy.threshold != "lagged":
        return None
    return LaggedDropout(recipe, threshold=threshold)
