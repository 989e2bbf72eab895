"""The forward pass of one micro-batch, with what drops in it.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.dropout.lagged import LaggedDropout
from training.dropout.neftune import neftune_noise
from training.dropout.policy import StepDropout, masked_input
from training.model.engine import Engine


class Forward(NamedTuple):
    """What a micro-batch's forward pass gave."""

    loss_sum: Tensor
    """Of the kept targets; what backward starts from."""
    nll_BS: Tensor
    is_kept_BS: Tensor
    """Targets whose term is in the loss."""
    entropy_BS: Tensor
    input_drops_BS: Tensor | None
    """Tokens whose embedding was replaced; None for none."""
    num_dropped: Tensor


def forward_micro_batch(
    recipe: Recipe,
    engine: Engine,
    batch: MicroBatch,
    dropout: StepDropout | None,
    lagged: LaggedDropout | None,
    micro_step: int,
) -> Forward:
    """The training forward of a micro-batch: inputs dropped before it, losses before or after it.

    Args:
        dropout: of the step; None when nothing drops.
        lagged: decides after the forward which targets stay.
        micro_step: number of the micro-batch within the step.
    """
    ids_BS, replaced_BS, is_kept_BS = batch.ids_BS, None, batch.is_target_BS
    input_drops_BS = None
    num_dropped = torch.zeros((), device=engine.layout.device)
    if dropout is not None and lagged is None:
        target_drops_BS = dropout.target_drops_BS(micro_step)
        num_dropped = target_drops_BS.sum()
        if dropout.where in ("input", "both"):
            input_drops_BS = dropout.input_drops_BS(micro_step)
            ids_BS, replaced_BS = masked_input(
                batch, input_drops_BS, recipe, vocab_size=engine.model.lm.config.vocab_size
            )
        if dropout.where in ("loss", "both"):
            is_kept_BS = is_kept_BS & ~target_drops_BS
    num_channels = engine.model.lm.config.get_text_config().hidden_size
    noise_BSD = neftune_noise(batch, recipe, num_channels=num_channels)
    inputs: dict[str, Any] = {
        "ids_BS": ids_BS,
        "replaced_BS": replaced_BS,
        "noise_BSD": noise_BSD,
    }
    if lagged is None:
        loss_sum, nll_BS, entropy_BS = engine.forward(
            batch, **inputs, token_weights_BS=is_kept_BS.float()
        )
    else:  # which targets stay is known only now, so the head needs its second pass
        nll_BS, entropy_BS = engine.forward(batch, **inputs)
        target_drops_BS = lagged.target_drops_BS(batch, nll_BS, entropy_BS)
        num_dropped = target_drops_BS.sum()
        is_kept_BS = is_kept_BS & ~target_drops_BS
        loss_sum = (nll_BS * is_kept_BS).sum()
    return Forward(loss_sum, nll_BS, is_kept_BS, entropy_BS, input_drops_BS, num_dropped)
