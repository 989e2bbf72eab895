"""The report of a step that should not be learnt from: its worst samples, and a rerun.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from training.config.sections import Guard
from training.data.stream import MicroBatch
from training.regularisers.base import RunParts
from training.run.loss_guard import Action, BadStep

_NUM_WORST = 3


class SampleLoss(NamedTuple):
    """A sample of the step, and its mean loss in nats per target."""

    sample: int
    loss: float


@dataclass(frozen=True)
class BadStepReport:
    """The same on every rank."""

    reason: str
    action: Action
    rerun: str | None
    """What a second forward pass showed; None where the weights had been updated in between."""
    worst: tuple[SampleLoss, ...]
    """Samples with the highest loss, non-finite losses first."""


class RowLosses:
    """Sums of the losses of a step's rows on this rank, kept in case they must be reported."""

    def __init__(self) -> None:
        self._rows: list[tuple[MicroBatch, Tensor]] = []

    def add(self, batch: MicroBatch, nll_BS: Tensor) -> None:
        """Take a micro-batch; nothing is computed yet that would wait for a GPU."""
        self._rows.append((batch, (nll_BS.detach() * batch.is_target_BS).double().sum(dim=1)))

    def local_sum(self) -> float:
        """Over all targets of this rank, dropped or not."""
        return sum(float(sum_B.sum()) for _, sum_B in self._rows)

    def worst(self) -> tuple[SampleLoss, ...]:
        """Over all ranks, each of which must call it; for bad steps only, since it gathers."""
        own = [
            (visit, sample, total, int(count))
            for batch, sum_B in self._rows
            for visit, sample, total, count in zip(
                batch.visits,
                batch.sample_ids,
                sum_B.tolist(),
                batch.is_target_BS.sum(dim=1).tolist(),
                strict=True,
            )
        ]
        every: list[list[tuple[int, int, float, int]]] = [[]] * dist.get_world_size()
        dist.all_gather_object(every, own)
        sums: dict[tuple[int, int], tuple[float, int]] = {}
        for visit, sample, total, count in (row for rows in every for row in rows):
            before = sums.get((visit, sample), (0.0, 0))  # shards of one row add up
            sums[visit, sample] = before[0] + total, before[1] + count
        means = [
            SampleLoss(sample, total / count)
            for (_, sample), (total, count) in sums.items()
            if count
        ]
        means.sort(key=lambda found: (math.isfinite(found.loss), -found.loss, found.sample))
        return tuple(means[:_NUM_WORST])


def make_report(bad: BadStep, rows: RowLosses, *, rerun: str | None) -> BadStepReport:
    """Every rank calls it."""
    return BadStepReport(bad.reason, bad.action, rerun, rows.worst())


def describe_bad_step(
    bad: BadStepReport, *, parts: RunParts, settings: Guard, step: int, num_in_row: int
) -> dict[str, Any]:
    """What is wrong with the step that has ended, in words and by number.

    Args:
        num_in_row: bad steps without a good one between them, this one included.

    Raises:
        ValueError: where the recipe ends the run.
    """
    named = [
        {
            "sample": sample,
            "documents": parts.pack.pieces(sample, "train")[:, 0].tolist(),
            "domain": next(part.name for part in parts.mixture if sample in part.samples),
            "loss": loss,
        }
        for sample, loss in bad.worst
    ]
    worst = "; ".join(
        f"sample {found['sample']} (domain {found['domain']}; documents "
        f"{', '.join(map(str, found['documents']))}; loss {found['loss']:.4g})"
        for found in named
    )
    sentences = [f"step {step}: {bad.reason}", bad.rerun, f"highest losses: {worst}"]
    text = ". ".join(part for part in sentences if part)
    limit = settings.max_bad_steps
    if bad.action == "stop" or num_in_row > limit:
        why = "guard is set to stop" if bad.action == "stop" else f"more than {limit} in a row"
        raise ValueError(f"{text}. {why}; the checkpoints are untouched")
    return {"bad_step": step, "text": text, "samples": named}
