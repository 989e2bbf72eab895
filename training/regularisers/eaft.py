"""Entropy-adaptive fine-tuning: a token's loss counts as much as its prediction is unsure.

Diao et al.: Entropy-adaptive fine-tuning, 2026 (arXiv 2601.02151). There the entropy is that of
the 20 likeliest tokens, divided by ln 20; here it is the whole one, which the head has anyway.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from training.config.recipe import Recipe
from training.model.inputs import Scored
from training.regularisers.base import Regulariser, RunParts


class EAFT(Regulariser):
    """Weights from the training forward's own entropies; the head computes its logits twice.

    The loss is still divided by the number of targets, as in the paper, so that its scale falls
    with the entropies; Adam's steps do not, but for clipping.
    """

    waits_for_forward = True

    def __init__(self, *, full_nats: float, side: Literal["high", "low"]) -> None:
        self._full_nats, self._side = full_nats, side

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        return cls(full_nats=recipe.baseline.eaft_full_nats, side=recipe.baseline.eaft_side)

    def loss_weights_BS(self, scored: Scored) -> Tensor | None:
        weight_BS = (scored.entropy_BS.detach() / self._full_nats).clamp(max=1.0)
        return weight_BS if self._side == "high" else 1.0 - weight_BS
