"""The training forward of one micro-batch, with what its regulariser drops.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from training.data.stream import MicroBatch
from training.model.engine import Engine
from training.model.inputs import ModelInputs, Scored
from training.regularisers.base import Regulariser
from training.run.teacher import Teacher


class Forward(NamedTuple):
    """The results of a micro-batch's forward pass."""

    loss_sum: Tensor
    """Of the targets in the loss; backward starts from it."""
    scored: Scored
    in_loss_BS: Tensor
    """Targets whose term is in the loss."""
    drops_BS: Tensor | None
    """Positions whose target drops, from the inputs, the loss or both; None for none."""


def forward_micro_batch(
    engine: Engine,
    batch: MicroBatch,
    regulariser: Regulariser,
    micro_step: int,
    teacher: Teacher | None = None,
) -> Forward:
    """Inputs are dropped before the pass, losses before or after it.

    Args:
        micro_step: number of the micro-batch within the step.
        teacher: has begun the step; not for a regulariser that waits for the forward.
    """
    inputs = regulariser.change_inputs(ModelInputs.of(batch), batch, micro_step)
    if regulariser.drops_losses:  # which, and so how many, only the device knows
        inputs = replace(inputs, max_weighted=None)
    # if the remaining targets are known only after the pass, the head needs a second one
    scored = engine.score(inputs) if regulariser.waits_for_forward else None
    drops_BS = regulariser.target_drops_BS(batch, micro_step, scored)
    in_loss_BS = batch.is_target_BS
    if drops_BS is not None and regulariser.drops_losses:
        in_loss_BS = in_loss_BS & ~drops_BS
    if scored is None:
        view = teacher.view(batch, micro_step) if teacher else None
        loss_sum, scored = engine.weighted_loss(inputs, in_loss_BS.float(), view)
    else:
        weight_BS = regulariser.loss_weights_BS(scored)
        counted_BS = in_loss_BS if weight_BS is None else in_loss_BS * weight_BS
        loss_sum = (scored.nll_BS * counted_BS).sum()
    if regulariser.masked_weight is not None:
        loss_sum = loss_sum * regulariser.masked_weight
    return Forward(loss_sum, scored, in_loss_BS, drops_BS)
