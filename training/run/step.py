"""One optimizer step: what drops, forward, token-exact loss, backward, update."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import torch

from training.data.epoch_digest import visits_digest
from training.data.stream import MicroBatch, SampleStream
from training.model.engine import Engine
from training.ranks.dist import mean_of, sum_over_ranks
from training.regularisers.base import Regulariser, Step
from training.run.bad_step import BadStepReport, RowLosses, make_report
from training.run.forward import Forward, forward_micro_batch
from training.run.loss_guard import LossGuard, judge_rerun
from training.run.teacher import Teacher
from training.run.token_sketch import TokenSketch


class StepResult(NamedTuple):
    """What an optimizer step did, over all ranks."""

    row: dict[str, Any]
    """Its metrics."""
    num_tokens: int
    digests: list[int]
    """For `epoch_digest.finish_epochs`."""
    alone_seconds: float
    """Time of this rank before it first met the others."""
    bad: BadStepReport | None
    """None for a good step."""


def train_step(
    engine: Engine,
    stream: SampleStream,
    regulariser: Regulariser,
    *,
    step: int,
    trained_frac: float,
    lr: float,
    guard: LossGuard | None = None,
    skip_update: bool = False,
    sketch: TokenSketch | None = None,
    teacher: Teacher | None = None,
) -> StepResult:
    """One optimizer step on this rank's part of the global batch.

    Args:
        step: 0-based.
        trained_frac: trained tokens / planned tokens, which drives the curriculum.
        lr: learning rate.
        guard: decides whether the step should be learnt from.
        skip_update: run the batch without an update.
        sketch: receives the step's tokens.
        teacher: whose predictions are part of the loss.

    Returns:
        What the step did, equal on every rank.
    """
    began = time.monotonic()
    engine.watchdog.enter("data", step=step, alone=True)
    batches = stream.step(step)
    own_counts = [
        sum(batch.num_targets for batch in batches),
        sum(batch.num_tokens for batch in batches),
    ]
    counts = torch.cat([torch.tensor(own_counts), visits_digest(batches, stream, step)])
    alone_seconds = time.monotonic() - began
    engine.watchdog.enter("plan")
    num_targets, num_tokens, *digests = sum_over_ranks(counts.to(engine.layout.device))
    this_step = Step(batches, stream, step, trained_frac, num_targets)
    dropout = regulariser.begin_step(this_step)
    # Known before the forward and equal on all ranks. Where terms leave the loss, times the share
    # that is expected to stay, as in inverted dropout.
    divisor = float(max(num_targets, 1)) * dropout.kept_share
    # Without a target, too: momentum and weight decay would still move the weights.
    skip_update = skip_update or num_targets == 0
    if teacher:
        teacher.begin_step(batches)
    sums, rows, bad = _Sums(engine), RowLosses(), None
    for micro_step, batch in enumerate(batches):
        if regulariser.masked_weight is not None:
            clean = forward_micro_batch(engine, batch, Regulariser(), micro_step, teacher)
            sums.add_clean(clean)
            engine.backward_and_step(clean.loss_sum, divisor=divisor, lr=lr)
        forward = forward_micro_batch(engine, batch, regulariser, micro_step, teacher)
        regulariser.observe(batch, micro_step, forward.scored)
        rows.add(batch, forward.scored.nll_BS)
        sums.add(batch, forward)
        if sketch:
            sketch.add(batch, forward, micro_step=micro_step)
        is_last = micro_step == len(batches) - 1
        if is_last and guard and guard.decides_before_update and not skip_update:
            loss = sums.over_ranks().loss
            bad = None if loss is None else guard.examine_loss(loss)
        makes_no_update = is_last and (skip_update or bad is not None)
        # DeepSpeed makes no update, on any rank, from a non-finite gradient.
        loss_sum = forward.loss_sum * math.nan if makes_no_update else forward.loss_sum
        grad_norm = engine.backward_and_step(loss_sum, divisor=divisor, lr=lr)
    engine.watchdog.enter("sums")
    regulariser.end_step(this_step)
    totals = sums.over_ranks()
    if guard and not skip_update and totals.loss is not None:
        bad = bad or guard.examine(loss=totals.loss, grad_norm=grad_norm or 0.0)
    report = None
    if bad:
        rerun = None if engine.updated else _run_again(engine, batches, regulariser, rows)
        report = make_report(bad, rows, rerun=rerun)
    row = {
        "loss": totals.loss,
        "objective": None if totals.loss is None else totals.learnt_sum / divisor,
        "lr": lr,
        "grad_norm": grad_norm if engine.updated else None,
        "updated": engine.updated,
        "gamma": dropout.gamma,
        "drop_rate_asked": dropout.rate_asked,
        "drop_rate_realised": mean_of(totals.num_dropped, num_targets),
        "entropy_threshold_nats": dropout.threshold_nats,
        "mean_entropy_nats": mean_of(totals.entropy_sum, num_targets),
    }
    return StepResult(row, num_tokens, digests, alone_seconds, report)


class _Totals(NamedTuple):
    """Over all ranks and the micro-batches so far."""

    loss_sum: float
    num_in_loss: float
    entropy_sum: float
    num_dropped: float
    learnt_sum: float
    """Of what backward starts from: with a teacher's part, weights and a clean pass."""

    @property
    def loss(self) -> float | None:
        return mean_of(self.loss_sum, self.num_in_loss)


class _Sums:
    """What a step adds up on this rank; nothing waits for a GPU before `over_ranks`."""

    def __init__(self, engine: Engine) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=engine.layout.device)

    def add(self, batch: MicroBatch, forward: Forward) -> None:
        nll_BS, entropy_BS = forward.scored
        num_dropped = torch.zeros_like(self._sums[0])
        if forward.drops_BS is not None:
            num_dropped = forward.drops_BS.sum().double()
        self._sums += torch.stack(
            [
                (nll_BS.detach() * forward.in_loss_BS).double().sum(),
                forward.in_loss_BS.double().sum(),
                (entropy_BS * batch.is_target_BS).double().sum(),
                num_dropped,
                forward.loss_sum.detach().double(),
            ]
        )

    def add_clean(self, forward: Forward) -> None:
        """Of a pass with unchanged inputs, beside the one that the row of the step describes."""
        self._sums[-1] += forward.loss_sum.detach()

    def over_ranks(self) -> _Totals:
        return _Totals(*sum_over_ranks(self._sums.clone()))


@torch.no_grad()
def _run_again(
    engine: Engine, batches: list[MicroBatch], regulariser: Regulariser, first: RowLosses
) -> str:
    """Rerun the same batch with the same weights: is the loss the same?"""
    second = RowLosses()
    for micro_step, batch in enumerate(batches):
        forward = forward_micro_batch(engine, batch, regulariser, micro_step)
        second.add(batch, forward.scored.nll_BS)
    sums = torch.tensor([first.local_sum(), second.local_sum()], dtype=torch.float64)
    num_targets = torch.tensor([sum(batch.num_targets for batch in batches)])
    totals = sum_over_ranks(sums.to(engine.layout.device))
    (num_targets_everywhere,) = sum_over_ranks(num_targets.to(engine.layout.device))
    return judge_rerun(*(total / max(num_targets_everywhere, 1) for total in totals))
