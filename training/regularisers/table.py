"""The regularisers by their names in a recipe, and building those of a run."""

from __future__ import annotations

from typing import Any

from training.config.recipe import Recipe
from training.config.regularisers import RegulariserName
from training.model.inputs import ModelRegularisation
from training.regularisers.base import Regulariser, RunParts, Together
from training.regularisers.baselines import (
    L2SP,
    AttentionOutputDropout,
    HiddenDropout,
    LabelSmoothing,
    MlpDropout,
    RandomTokenDropout,
    Rho1,
    StochasticDepth,
    WeightDecay,
)
from training.regularisers.eaft import EAFT
from training.regularisers.entrodrop import EntroDrop
from training.regularisers.mir import MIR
from training.regularisers.neftune import NEFTune
from training.regularisers.token_replacement import TokenReplacement

REGULARISERS: dict[RegulariserName, type[Regulariser]] = {
    "none": Regulariser,
    "entrodrop": EntroDrop,
    "random_token_dropout": RandomTokenDropout,
    "rho1": Rho1,
    "token_replacement": TokenReplacement,
    "neftune": NEFTune,
    "mir": MIR,
    "eaft": EAFT,
    "hidden_dropout": HiddenDropout,
    "mlp_dropout": MlpDropout,
    "attention_output_dropout": AttentionOutputDropout,
    "stochastic_depth": StochasticDepth,
    "label_smoothing": LabelSmoothing,
    "weight_decay": WeightDecay,
    "l2_sp": L2SP,
}


def model_regularisation(recipe: Recipe) -> ModelRegularisation:
    """What the recipe's regularisers change in model and optimizer."""
    fields: dict[str, Any] = {}
    for regulariser in _chosen(recipe):
        fields |= regulariser.in_model(recipe)
    return ModelRegularisation(**fields)


def build_regulariser(recipe: Recipe, parts: RunParts) -> Regulariser:
    """The recipe's regularisers, as one."""
    first, *others = (regulariser.build(recipe, parts) for regulariser in _chosen(recipe))
    return Together(first, *others) if others else first


def _chosen(recipe: Recipe) -> list[type[Regulariser]]:
    """A recipe has them in the order of the table: what chooses tokens comes first."""
    return [REGULARISERS[name] for name in recipe.regularisers]
