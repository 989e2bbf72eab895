"""One optimizer step: dropout, forward, token-exact loss, backward, update."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from training.config.recipe import Recipe
from training.data.epoch_digest import visits_digest
from training.data.stream import MicroBatch, SampleStream
from training.dropout.corpus_threshold import CorpusThreshold
from training.dropout.entropy_source import EntropySource
from training.dropout.lagged import LaggedDropout
from training.dropout.policy import StepDropout, plan_dropout
from training.model.engine import Engine
from training.ranks.dist import sum_over_ranks
from training.run.bad_step import BadStepReport, RowLosses, make_report
from training.run.forward import Forward, forward_micro_batch
from training.run.loss_guard import LossGuard, judge_rerun
from training.run.schedule import learning_rate
from training.run.token_sketch import TokenSketch


class StepResult(NamedTuple):
    """What an optimizer step did, over all ranks."""

    row: dict[str, Any]
    """Its metrics."""
    num_tokens: int
    digests: list[int]
    """For `epoch_proof.finish_epochs`."""
    alone_seconds: float
    """Time of this rank before it first met the others."""
    bad: BadStepReport | None
    """None for a step to learn from."""


def train_step(
    recipe: Recipe,
    engine: Engine,
    stream: SampleStream,
    *,
    source: EntropySource,
    lagged: LaggedDropout | None = None,
    corpus: CorpusThreshold | None = None,
    guard: LossGuard | None = None,
    skip_update: bool = False,
    sketch: TokenSketch | None = None,
    step: int,
    done_frac: float,
) -> StepResult:
    """One optimizer step on this rank's part of the global batch.

    Args:
        source: of the entropies that decide what drops.
        lagged: decides it instead, after each forward pass.
        corpus: says who is low, if not the step's own quantile does.
        guard: says whether the step is one to learn from.
        skip_update: go through the batch without an update.
        sketch: is shown the step's tokens.
        step: 0-based.
        done_frac: trained tokens / planned tokens, which drives the curriculum.

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
    if lagged is None:
        dropout = plan_dropout(
            source,
            batches,
            recipe,
            progress=done_frac,
            num_targets=num_targets,
            corpus_low=corpus.low_set(stream, step) if corpus else None,
        )
    else:
        dropout = lagged.begin_step(progress=done_frac)
    divisor = loss_divisor(recipe, num_targets, dropout)
    lr = learning_rate(
        step, peak=recipe.optimizer.lr, total_steps=stream.num_steps, **asdict(recipe.schedule)
    )
    # Without a target, too: momentum and weight decay would still move the weights.
    skip_update = skip_update or num_targets == 0
    sums, rows, bad = _Sums(engine), RowLosses(), None
    for micro_step, batch in enumerate(batches):
        done = forward_micro_batch(recipe, engine, batch, dropout, lagged, micro_step)
        source.observe(batch, done.nll_BS, done.entropy_BS, done.input_drops_BS)
        rows.add(batch, done.nll_BS)
        sums.add(batch, done)
        if sketch:
            planned = dropout if lagged is None else None
            sketch.add(batch, done, planned, micro_step=micro_step)
        is_last = micro_step == len(batches) - 1
        if is_last and guard and guard.decides_before_update and not skip_update:
            bad = guard.examine_loss(sums.over_ranks().loss)
        makes_no_update = is_last and (skip_update or bad is not None)
        # DeepSpeed makes no update, on any rank, from a non-finite gradient.
        loss_sum = done.loss_sum * math.nan if makes_no_update else done.loss_sum
        grad_norm = engine.backward_and_step(loss_sum, divisor=divisor, lr=lr)
    engine.watchdog.enter("sums")
    source.end_step(stream, step)
    if lagged is not None:
        lagged.end_step()
    totals = sums.over_ranks()
    if guard and not skip_update and totals.num_kept:
        bad = bad or guard.examine(loss=totals.loss, grad_norm=grad_norm or 0.0)
    report = None
    if bad:
        # The lagged drops are in no input, so a pass without them sees the same.
        planned = dropout if lagged is None else None
        rerun = None if engine.updated else _run_again(recipe, engine, batches, planned, rows)
        report = make_report(bad, rows, rerun=rerun)
    row = {
        "loss": totals.loss,
        "objective": totals.loss_sum / divisor,
        "lr": lr,
        "grad_norm": grad_norm if engine.updated else None,
        "updated": engine.updated,
        "gamma": dropout.gamma if dropout else 0.0,
        "drop_rate_asked": dropout.rate_asked if dropout else 0.0,
        "drop_rate_realised": totals.num_dropped / max(num_targets, 1),
        "entropy_threshold_nats": dropout.threshold_nats if dropout else None,
        "mean_entropy_nats": totals.entropy_sum / max(num_targets, 1),
    }
    return StepResult(row, num_tokens, digests, alone_seconds, report)


class _Totals(NamedTuple):
    """Over all ranks and the micro-batches so far."""

    loss_sum: float
    num_kept: float
    entropy_sum: float
    num_dropped: float

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.num_kept, 1)


class _Sums:
    """What a step adds up on this rank; nothing waits for a GPU before `over_ranks`."""

    def __init__(self, engine: Engine) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=engine.layout.device)

    def add(self, batch: MicroBatch, done: Forward) -> None:
        self._sums += torch.stack(
            [
                (done.nll_BS.detach() * done.is_kept_BS).double().sum(),
                done.is_kept_BS.double().sum(),
                (done.entropy_BS * batch.is_target_BS).double().sum(),
                done.num_dropped.double(),
            ]
        )

    def over_ranks(self) -> _Totals:
        return _Totals(*sum_over_ranks(self._sums.clone()))


@torch.no_grad()
def _run_again(
    recipe: Recipe,
    engine: Engine,
    batches: list[MicroBatch],
    dropout: StepDropout | None,
    first: RowLosses,
) -> str:
    """The same batch through the same weights once more: does it come out the same?"""
    second = RowLosses()
    for micro_step, batch in enumerate(batches):
        second.add(
            batch, forward_micro_batch(recipe, engine, batch, dropout, None, micro_step).nll_BS
        )
    sums = torch.tensor([first.local_sum(), second.local_sum()], dtype=torch.float64)
    num_targets = torch.tensor([sum(batch.num_targets for batch in batches)])
    totals = sum_over_ranks(sums.to(engine.layout.device))
    (num_targets_everywhere,) = sum_over_ranks(num_targets.to(engine.layout.device))
    return judge_rerun(*(total / max(num_targets_everywhere, 1) for total in totals))


def loss_divisor(recipe: Recipe, num_targets: int, dropout: StepDropout | None) -> float:
    """What the sum of kept losses is divided by: known before the forward, equal on all ranks.

    The targets of the whole global batch; where terms leave the loss, times the share
    `1 - quantile * gamma` that is expected to stay, as inverted dropout does.
    """
    divisor = float(max(num_targets, 1))
    if dropout and dropout.where != "input" and recipe.dropout.renormalise:
        divisor *= 1.0 - dropout.rate_asked
    return divisor
