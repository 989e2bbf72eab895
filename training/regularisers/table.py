"""The regularisers by their names in a recipe, and building those of a run."""

from __future__ import annotations

from typing import Any

from training.config.recipe import Recipe
from training.config.sections import RegulariserName
from training.model.inputs import ModelRegularisation
from training.regularisers.base import Regulariser, RunParts, Together
from training.regularisers.baselines import (
    HiddenDropout,
    LabelSmoothing,
    RandomTokenDropout,
    Rho1,
    WeightDecay,
)
from training.regularisers.entrodrop import EntroDrop
from training.regularisers.neftune import NEFTune

REGULARISERS: dict[RegulariserName, type[Regulariser]] = {
    "none": Regulariser,
    "entrodrop": EntroDrop,
    "random_token_dropout": RandomTokenDropout,
    "hidden_dropout": HiddenDropout,
    "label_smoothing": LabelSmoothing,
    "neftune": NEFTune,
    "rho1": Rho1,
    "weight_decay": WeightDecay,
}


def model_regularisation(recipe: Recipe) -> ModelRegularisation:
    """What the recipe's regularisers change in model and optimizer."""
    fields: dict[str, Any] = {}
    for regulariser in _chosen(recipe):
        fields |= regulariser.in_model(recipe)
    return ModelRegularisation(**fields)


def build_regulariser(recipe: Recipe, parts: RunParts) -> Regulariser:
    """The recipe's regulariser, with the extra one if it has one."""
    first, *extra = (regulariser.build(recipe, parts) for regulariser in _chosen(recipe))
    return Together(first, *extra) if extra else first


def _chosen(recipe: Recipe) -> list[type[Regulariser]]:
    names = (recipe.regulariser, recipe.extra_regulariser)
    return [REGULARISERS[name] for name in names if name is not None]
