"""Masked-input regularisation: the loss of masked inputs is added to that of clean ones.

Data-constrained language model pretraining: improved regularization and scaling laws, 2026 (arXiv
2606.06888): there the masks are random, with a rate per sample from U(0, 0.5), which is
random_token_dropout with dropout.sample_rates: uniform, quantile: 1 and max_rate: 0.5.
"""

from __future__ import annotations

from training.config.recipe import Recipe
from training.regularisers.base import Regulariser, RunParts


class MIR(Regulariser):
    """Each micro-batch has two forward and backward passes, one after the other.

    The others decide what is masked. Dropout of channels and layers is the same in both passes.
    """

    def __init__(self, *, weight: float) -> None:
        self.masked_weight = weight

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        return cls(weight=recipe.baseline.mir_weight)
