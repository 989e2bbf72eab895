"""How much work a recipe makes of a token, in forward passes of the same cost."""

from __future__ import annotations

from typing import NamedTuple

from training.config.recipe import Recipe


class Passes(NamedTuple):
    """In units of a forward pass; a backward pass is two of them, beside an adapter about one."""

    model: float
    """Forward and backward once: what model FLOPs utilisation (MFU) counts."""
    hardware: float
    """All that run: recomputed ones, probes, a teacher's, a second training pass too (HFU)."""


def passes_of(recipe: Recipe, *, mlp_share: float) -> Passes:
    """Of each trained token; the second product of logits in a head of two passes is left out.

    Args:
        mlp_share: of a forward pass, what tiles of MLPs compute again; 0 without tiles.
    """
    model = 3.0 if recipe.adapter is None else 2.0  # no gradients of frozen weights
    again = recipe.model.activation_checkpointing + mlp_share
    hardware = recipe.num_passes * (model + again)
    is_taught = recipe.teacher is not None and recipe.teacher.runs
    return Passes(model, hardware + recipe.probes + is_taught)


def runs_tiles(recipe: Recipe, *, hidden: int) -> bool:
    """Whether a rank's micro-batch is more than one tile of its MLPs, which has `hidden` tokens."""
    train = recipe.train
    row_tokens = recipe.data.sequence_tokens // train.sequence_parallel_size
    return recipe.model.tiled_mlp and train.micro_batch_samples * row_tokens > hidden


def forward_flops(*, weights: int, layers: int, queries: int, sequence_tokens: int) -> float:
    """Floating-point operations of a forward pass for a token.

    2 a weight; 2 (Q K^T, then with V) x 2 x T / 2 x Q a layer for attention over T tokens, of which
    T / 2 lie before it on average (Narayanan et al., arXiv 2104.04473, appendix). Documents and
    windows shorter than a sample take less.

    Args:
        weights: of all layers and the output layer.
        layers: with attention.
        queries: numbers of all heads of a token.
        sequence_tokens: of a sample.
    """
    return 2.0 * weights + 2.0 * sequence_tokens * queries * layers
