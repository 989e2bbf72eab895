"""One optimizer step: dropout, forward, token-exact loss, backward, update.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.bad_step import BadStepReport, RowLosses, make_report
from training.config import Recipe
from training.corpus_threshold import CorpusThreshold
from training.data import MicroBatch, SampleStream
from training.dist import sum_over_ranks
from training.engine import Engine
from training.entropy_source import EntropySource
from training.epoch_proof import visits_digest
from training.input_noise import neftune_noise
from training.lagged_dropout import LaggedDropout
from training.loss_guard import LossGuard, judge_rerun
from training.schedule import learning_rate
from training.token_dropout import StepDropout, masked_input, plan_dropout


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
    leaves_out: bool = False,
    step: int,
    done_frac: float,
) -> StepResult:
    """One optimizer step on this rank's part of the global batch.

    Args:
        source: of the entropies that decide what drops.
        lagged: decides it instead, after each forward pass.
        corpus: says who is low, if not the step's own quantile does.
        guard: says whether the step is one to learn from.
        leaves_out: go through the batch without an update.
        step: 0-based.
        done_frac: trained tokens / planned tokens, which drives the curriculum.

    Returns:
        What the step did, equal on every rank.
    """
    began = time.monotonic()
    engine.watchdog.enter("data", step=step, alone=True)
    batches = stream.step(step)
    engine.watchdog.enter("plan")
    own_counts = [
        sum(batch.num_targets for batch in batches),
        sum(batch.num_tokens for batch in batches),
    ]
    counts = torch.cat([torch.tensor(own_counts), visits_digest(batches, stream, step)])
    alone_seconds = time.monotonic() - began
    num_targets, num_tokens, *digests = sum_over_ranks(counts.to(engine.layout.device))
    if lagged is None:
        low = corpus.low_set(stream, step) if corpus else None
        dropout = plan_dropout(
            source,
            batches,
            recipe,
            progress=done_frac,
            num_targets=num_targets,
            corpus_low=low,
        )
    else:
        dropout = lagged.begin_step(progress=done_frac)
    divisor = loss_divisor(recipe, num_targets, dropout)
    lr = learning_rate(
        step, peak=recipe.optimizer.lr, total_steps=stream.num_steps, **asdict(recipe.schedule)
    )
    rows, bad = RowLosses(), None
    grad_norm, sums = None, torch.zeros(4, dtype=torch.float64, device=engine.layout.device)
    for micro_step, batch in enumerate(batches):
        done = _forward(recipe, engine, batch, dropout, lagged, micro_step)
        source.observe(batch, done.nll_BS, done.entropy_BS, done.input_drops_BS)
        rows.add(batch, done.nll_BS)
        sums += torch.stack(
            [
                (done.nll_BS.detach() * done.is_kept_BS).double().sum(),
                done.is_kept_BS.double().sum(),
                (done.entropy_BS * batch.is_target_BS).double().sum(),
                done.num_dropped.double(),
            ]
        )
        loss_sum = done.loss_sum
        if micro_step == len(batches) - 1:
            if guard and guard.decides_before_update and not leaves_out:
                so_far, num_so_far, *_ = sum_over_ranks(sums.clone())
                bad = guard.examine_loss(so_far / max(num_so_far, 1))
            if leaves_out or bad or num_targets == 0:
                # Without a target, too: momentum and weight decay would still move the weights.
                loss_sum = loss_sum * math.nan
        grad_norm = engine.backward_and_step(loss_sum, divisor=divisor, lr=lr)
    engine.watchdog.enter("sums")
    source.end_step(stream, step)
    if lagged is not None:
        lagged.end_step()
    total, num_kept, entropy_sum, dropped = sum_over_ranks(sums)
    loss = total / max(num_kept, 1)
    if guard and not leaves_out and num_kept:
        bad = bad or guard.examine_loss(loss) or guard.examine_gradient(grad_norm or 0.0)
        if bad is None or bad.action == "report":
            guard.keep(loss=loss, grad_norm=grad_norm or 0.0)
    report = None
    if bad:
        rerun = None
        if not engine.updated:
            rerun = _run_again(recipe, engine, batches, dropout if lagged is None else None, rows)
        report = make_report(bad, rows, rerun=rerun)
    row = {
        "loss": loss,
        "objective": total / divisor,
        "lr": lr,
        "grad_norm": grad_norm if engine.updated else None,
        "updated": engine.updated,
        "gamma": dropout.gamma if dropout else 0.0,
        "drop_rate_asked": dropout.rate_asked if dropout else 0.0,
        "drop_rate_realised": dropped / max(num_targets, 1),
        "entropy_threshold_nats": dropout.threshold_nats if dropout else None,
        "mean_entropy_nats": entropy_sum / max(num_targets, 1),
    }
    return StepResult(row, num_tokens, digests, alone_seconds, report)


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
        second.add(batch, _forward(recipe, engine, batch, dropout, None, micro_step).nll_BS)
    sums = torch.tensor([first.local_sum(), second.local_sum()], dtype=torch.float64)
    num_targets = torch.tensor([sum(batch.num_targets for batch in batches)])
    totals = sum_over_ranks(sums.to(engine.layout.device))
    (num_targets_everywhere,) = sum_over_ranks(num_targets.to(engine.layout.device))
    return judge_rerun(*(total / max(num_targets_everywhere, 1) for total in totals))


class _Forward(NamedTuple):
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


def _forward(
    recipe: Recipe,
    engine: Engine,
    batch: MicroBatch,
    dropout: StepDropout | None,
    lagged: LaggedDropout | None,
    micro_step: int,
) -> _Forward:
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
    return _Forward(loss_sum, nll_BS, is_kept_BS, entropy_BS, input_drops_BS, num_dropped)


def loss_divisor(recipe: Recipe, num_targets: int, dropout: StepDropout | None) -> float:
    """What the sum of kept losses is divided by: known before the forward, equal on all ranks.

    The targets of the whole global batch; where terms leave the loss, times the share
    `1 - quantile * gamma` that is expected to stay, as inverted dropout does.
    """
    divisor = float(max(num_targets, 1))
    if dropout and dropout.where != "input" and recipe.dropout.renormalise:
        divisor *= 1.0 - dropout.rate_asked
    return divisor
