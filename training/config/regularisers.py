"""The regularisers that a recipe may name, their strengths, and which of them go together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from training.config.dropout import Dropout, Entropy
from training.config.sections import STRICT, Model

RegulariserName = Literal[
    "none",
    "entrodrop",
    "random_token_dropout",
    "rho1",
    "token_replacement",
    "neftune",
    "mir",
    "eaft",
    "hidden_dropout",
    "mlp_dropout",
    "attention_output_dropout",
    "stochastic_depth",
    "label_smoothing",
    "weight_decay",
    "l2_sp",
]
_CHOOSE_TOKENS = ("entrodrop", "random_token_dropout", "rho1")
_CHANGE_INPUTS = ("token_replacement", "neftune")


def in_one_order(names: Iterable[Any]) -> list[Any]:
    """Their order in a recipe means nothing, so it makes no other run; other words come last."""
    order = get_args(RegulariserName)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _checked(names: tuple[RegulariserName, ...]) -> tuple[RegulariserName, ...]:
    if not names:
        raise ValueError("name at least one; none is [none]")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is named twice")
    if len(names) > 1 and "none" in names:
        others = ", ".join(name for name in names if name != "none")
        raise ValueError(f"none stands alone; to use {others}, leave it out")
    return tuple(in_one_order(names))


Regularisers = Annotated[tuple[RegulariserName, ...], AfterValidator(_checked)]


@dataclass(config=STRICT)
class Baseline:
    """Strengths of the standard regularisers; only those of the chosen ones are used."""

    weight_decay: Annotated[float, Field(ge=0)] = 1.0
    """weight_decay takes this in place of optimizer.weight_decay."""
    label_smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """label_smoothing: share of each target that is spread over the vocabulary."""
    hidden_dropout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """hidden_dropout: rate at which channels are dropped after every layer."""
    mlp_dropout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """mlp_dropout: rate at which inner channels of every MLP are dropped, before its last
    matrix."""
    attention_output_dropout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """attention_output_dropout: rate at which channels of every attention's output are dropped."""
    stochastic_depth: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """stochastic_depth: rate at which the last layer is skipped, by sample; the rate rises linearly
    from the first layer on."""
    token_replacement: Annotated[float, Field(gt=0, le=1)] = 0.15
    """token_replacement: rate at which a target becomes a random token as an input."""
    neftune_alpha: Annotated[float, Field(gt=0)] = 5.0
    """neftune: uniform noise on embeddings, up to alpha / sqrt(L D) for L tokens of the document
    and D channels."""
    mir_weight: Annotated[float, Field(gt=0)] = 0.4
    """mir: weight of the loss of the masked pass beside that of the clean one, which is 1. Each
    micro-batch then takes two forward and backward passes."""
    rho1_share: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """rho1: share of the targets that is trained on: those whose loss most exceeds that in
    `entropy.scores` (of measure nll). Costs a forward pass without gradient."""
    eaft_full_nats: Annotated[float, Field(gt=0)] = 3.0
    """eaft: entropy from which on a target counts whole; below, its loss is weighted by entropy /
    this. 3.0 is ln 20, the paper's."""
    eaft_side: Literal["high", "low"] = "high"
    """eaft: high: a token counts the more, the higher its entropy (the paper's). low: 1 minus that
    weight, which turns hard tokens down, as a control."""
    l2_sp: Annotated[float, Field(gt=0)] = 1.0
    """l2_sp: decay of all weights towards those of model.pretrained, times the learning rate."""


def find_no_combination(
    names: tuple[RegulariserName, ...], *, dropout: Dropout, entropy: Entropy, model: Model
) -> str | None:
    """Why the regularisers of a recipe cannot work together; None where they can."""
    choosing = [name for name in names if name in _CHOOSE_TOKENS]
    if len(choosing) > 1:
        return f"regularisers: {' and '.join(choosing)} each decide which tokens drop: name one"
    if "l2_sp" in names and model.pretrained is None:
        return "regularisers: l2_sp needs model.pretrained (is null): there is no base to stay near"
    if {"entrodrop", "token_replacement"} <= set(names) and entropy.source == "cache":
        return (
            "regularisers: token_replacement with entropy.source: cache would keep entropies "
            "behind replaced tokens as if clean: set entropy.source to online or reference"
        )
    if "mlp_dropout" in names and model.tiled_mlp:
        return (
            "regularisers: mlp_dropout draws for whole rows, of which model.tiled_mlp gives the "
            "MLP tiles: leave one of them out"
        )
    if "mir" in names:
        return _find_no_masks(names, choosing, dropout=dropout)
    return None


def _find_no_masks(
    names: tuple[RegulariserName, ...], choosing: list[RegulariserName], *, dropout: Dropout
) -> str | None:
    """A masked pass needs something that masks, and no loss that the clean one would not have."""
    if "eaft" in names:
        return "regularisers: mir with eaft would weight two passes by entropies of two kinds"
    if "rho1" in choosing:
        return "regularisers: mir with rho1 has no meaning: rho1 leaves inputs as they are"
    if choosing and dropout.where != "input":
        return (
            f"regularisers: mir with {choosing[0]} needs dropout.where: input (is {dropout.where})"
        )
    if not choosing and not set(names) & set(_CHANGE_INPUTS):
        return (
            "regularisers: mir needs one that changes inputs: entrodrop, random_token_dropout, "
            f"{' or '.join(_CHANGE_INPUTS)}"
        )
    return None
