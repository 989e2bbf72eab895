"""The training loop: step, guard, evaluate, save, stop on request, roll back."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from training.checkpoints.load import load_checkpoint
from training.checkpoints.manifest import newest_verified
from training.checkpoints.progress import Progress
from training.checkpoints.saver import Saver
from training.config.recipe import Recipe
from training.data.epoch_digest import finish_epochs
from training.data.prefetch import prefetching
from training.data.sample_order import SampleOrder
from training.data.stream import SampleStream
from training.metrics.writer import MetricsWriter
from training.model.engine import Engine
from training.model.shadow import AveragedWeights
from training.model.utilisation import Utilisation
from training.ranks.dist import broadcast_from_rank0
from training.ranks.rank_report import RankMeter
from training.ranks.run_state import RunRecord
from training.ranks.stopping import StopRequests
from training.regularisers.base import Regulariser, RunParts
from training.regularisers.table import build_regulariser
from training.run.bad_step import BadStepReport, describe_bad_step
from training.run.best import decisive_loss, is_best_so_far, judged, reason_to_end
from training.run.heldout import Heldout
from training.run.loss_guard import Action, LossGuard
from training.run.plan import Plan
from training.run.profile import StepProfiler
from training.run.schedule import learning_rate
from training.run.step import train_step
from training.run.teacher import Teacher
from training.run.token_sketch import TokenSketch


@dataclass(frozen=True)
class Run:
    """What is constant over the steps of one start."""

    recipe: Recipe
    plan: Plan
    parts: RunParts
    metrics: MetricsWriter
    identity: dict[str, Any]
    accepted: Collection[str]
    """Parts of the identity that may differ from a checkpoint's."""
    record: RunRecord
    requests: StopRequests
    saver: Saver
    heldout: Mapping[str, SampleStream]
    """By set; none for a recipe without evaluations."""
    average: AveragedWeights | None
    """Of the weights, for a recipe with `ema`."""
    teacher: Teacher | None
    profiler: StepProfiler

    @property
    def engine(self) -> Engine:
        return self.parts.engine


@dataclass(frozen=True)
class _LoopState:
    """State that steps pass on to later ones; rebuilt from a checkpoint's progress."""

    regulariser: Regulariser
    guard: LossGuard
    meter: RankMeter
    utilisation: Utilisation

    @classmethod
    def at(cls, run: Run, progress: Progress) -> _LoopState:
        return cls(
            regulariser=build_regulariser(
                run.recipe, replace(run.parts, threshold=progress.threshold)
            ),
            guard=LossGuard(
                run.recipe.guard,
                losses=progress.recent_losses,
                grad_norms=progress.recent_grad_norms,
            ),
            meter=RankMeter(run.engine.layout, run.engine.memory),
            utilisation=Utilisation.of(
                run.recipe, run.engine.model, num_gpus=run.engine.layout.world_size
            ),
        )


def run_steps(run: Run, progress: Progress) -> None:
    """Continue from `progress` to the end of the run, or until it is asked to stop."""
    stream = SampleStream(
        pack=run.parts.pack,
        split="train",
        layout=run.engine.layout,
        total_samples=run.plan.total_samples,
        samples_per_step=run.plan.samples_per_step,
        micro_batch_samples=run.recipe.train.micro_batch_samples,
        order=SampleOrder(run.parts.mixture, seed=run.recipe.seed),
    )
    with prefetching(stream) as ahead:
        _take_steps(run, ahead, progress)


def _take_steps(run: Run, stream: SampleStream, progress: Progress) -> None:
    recipe, plan = run.recipe, run.plan
    heldout, progress = _open_heldout(run, progress)
    evaluate_every, save_every = recipe.evaluation.every_steps, recipe.checkpoint.every_steps
    last_step = min(plan.total_steps, recipe.train.stop_after_steps or plan.total_steps)
    state = _LoopState.at(run, progress)
    stop, over = None, reason_to_end(progress, recipe.train.stop_when)
    while progress.step < last_step and not stop and not over:
        progress, bad = _one_step(run, stream, state, progress)
        if bad:
            run.saver.finish()
            event = describe_bad_step(
                bad,
                parts=run.parts,
                settings=recipe.guard,
                step=progress.step,
                num_in_row=progress.num_bad_in_row,
            )
            earlier = _roll_back(run, progress) if bad.action == "rollback" else None
            if earlier:
                progress, state = earlier, _LoopState.at(run, earlier)
            action, did = _action_taken(run.engine, went_back=earlier is not None)
            event |= {"action": action, "text": f"{event['text']}: {did}"}
            run.metrics.log_bad_step({"step": progress.step} | event)
            if earlier:  # saved when the run first got here
                progress = _settle_evaluation(run, heldout, progress) if heldout else progress
                continue
        run.engine.watchdog.enter("agreement")
        run.saver.publish_when_written()
        stop = run.requests.agreed()
        is_last = progress.step == last_step
        if stop:  # whoever asks may not wait longer than for the save
            run.saver.save_last(progress)
            if not is_last:
                run.record.stopped(progress.step, stop)
            run.requests.remove_stop_file()
        is_due = evaluate_every and progress.step % evaluate_every == 0 and not stop
        if heldout and (is_due or is_last):
            progress = _evaluate(run, heldout, progress)
            over = reason_to_end(progress, recipe.train.stop_when)
        is_new_best = recipe.saves_best and is_best_so_far(progress)
        is_save_due = save_every and progress.step % save_every == 0
        if (is_last or over) and not stop:
            run.saver.save_last(progress)
        elif is_new_best or (is_save_due and not stop):
            run.saver.save(progress)
    run.saver.close()
    if progress.step == plan.total_steps:
        run.record.complete(progress.step)
    elif over:
        run.metrics.tell(f"complete after step {progress.step} of {plan.total_steps}: {over}")
        run.record.complete(progress.step, over)
    elif progress.step >= last_step:  # beyond it where a resume is told to stop earlier
        run.record.stopped(progress.step, stop or "train.stop_after_steps")


def _open_heldout(run: Run, progress: Progress) -> tuple[Heldout | None, Progress]:
    """None for a recipe without evaluations."""
    if not run.heldout:
        return None, progress
    first_row = broadcast_from_rank0(run.metrics.evaluation(0)) if progress.step else None
    heldout = Heldout.open(
        run.engine,
        run.recipe,
        run.heldout,
        step=progress.step,
        first_row=first_row,
        average=run.average,
    )
    return heldout, _settle_evaluation(run, heldout, progress)


def _one_step(
    run: Run, stream: SampleStream, state: _LoopState, progress: Progress
) -> tuple[Progress, BadStepReport | None]:
    began = time.monotonic()
    sketch = TokenSketch(run.engine.layout) if _is_evaluated(run, progress.step + 1) else None
    recipe = run.recipe
    run.profiler.begin(progress.step + 1)
    result = train_step(
        run.engine,
        stream,
        state.regulariser,
        step=progress.step,
        trained_frac=progress.tokens / run.plan.planned_tokens,
        lr=learning_rate(
            progress.step,
            peak=recipe.optimizer.lr,
            total_steps=stream.num_steps,
            **asdict(recipe.schedule),
        ),
        guard=state.guard,
        skip_update=progress.step in progress.left_out,
        sketch=sketch,
        teacher=run.teacher,
    )
    if run.average and run.engine.updated:
        run.average.update()
    run.profiler.end(progress.step + 1)
    seconds = time.monotonic() - began
    finished, carried = finish_epochs(progress.epoch_digest, result.digests, stream, progress.step)
    is_lost = result.bad is not None and result.bad.action != "report"
    # Steps repeated after a rollback were good before: they do not end a streak of bad ones.
    is_repeated = progress.step <= max(progress.left_out, default=-1)
    progress = replace(
        progress,
        step=progress.step + 1,
        tokens=progress.tokens + result.num_tokens,
        threshold=state.regulariser.threshold,
        epoch_digest=carried,
        recent_losses=state.guard.losses,
        recent_grad_norms=state.guard.grad_norms,
        num_bad_in_row=(progress.num_bad_in_row + is_lost if is_lost or is_repeated else 0),
    )
    per_second = result.num_tokens / seconds
    speed = {"tokens_per_second": per_second, "seconds": seconds}
    speed |= state.utilisation.at(per_second)
    position = run.plan.position(step=progress.step, tokens=progress.tokens)
    picture = sketch.over_ranks() if sketch else None
    run.engine.watchdog.enter("metrics", step=progress.step, alone=True)
    run.metrics.log_step(position | result.row | speed)
    if picture:
        tokenizer = Path(recipe.data.corpus) / "tokenizer"
        run.metrics.log_tokens(picture, step=progress.step, tokenizer=tokenizer)
    for epoch, digest in finished.items():
        run.metrics.log_epoch(position | {"finished_epoch": epoch, "samples_digest": digest})
    state.meter.add(alone_seconds=result.alone_seconds, step_seconds=seconds)
    run.engine.watchdog.enter("ranks")
    report = state.meter.report()
    if report:
        run.metrics.log_ranks({"step": progress.step} | report)
    return progress, result.bad


def _is_evaluated(run: Run, step: int) -> bool:
    every = run.recipe.evaluation.every_steps
    return every is not None and (step % every == 0 or step == run.plan.total_steps)


def _settle_evaluation(run: Run, heldout: Heldout, progress: Progress) -> Progress:
    """Make up for the evaluation of a checkpoint that was saved before it.

    That of the start of a run, and of a step at which a start was asked to stop; it may have been
    made then, after the save.
    """
    if not _is_evaluated(run, progress.step) or progress.evaluated_step == progress.step:
        return progress
    row = broadcast_from_rank0(run.metrics.evaluation(progress.step))
    if row is None:
        progress = _evaluate(run, heldout, progress)
    else:
        loss = decisive_loss(row, run.recipe.ema)
        progress = judged(progress, loss, counts=progress.step > 0)
    if run.recipe.saves_best and is_best_so_far(progress):
        run.saver.save(progress)
    return progress


def _action_taken(engine: Engine, *, went_back: bool) -> tuple[Action, str]:
    """May differ from the configured one: without a checkpoint a rollback changes nothing."""
    if went_back:
        return "rollback", "rolled back"
    # an exploding gradient is known only after it was clipped and used
    return ("report", "trained on anyway") if engine.updated else ("skip", "skipped")


def _roll_back(run: Run, progress: Progress) -> Progress | None:
    """Return to the newest checkpoint, with the last step's batch left out this time.

    None without a checkpoint: nothing is undone.
    """
    bad_step = progress.step - 1
    newest = newest_verified(run.saver.folder, run.engine.layout)
    if newest is None:
        return None
    run.engine.watchdog.enter("load", slow=True)
    loaded = load_checkpoint(
        run.engine,
        newest,
        identity=run.identity,
        accepted=run.accepted,
        cache=run.parts.cache,
        average=run.average,
    )
    run.metrics.rewind(loaded.step)
    return replace(
        loaded,
        left_out=(*dict.fromkeys((*loaded.left_out, *progress.left_out, bad_step)),),
        num_bad_in_row=progress.num_bad_in_row,
    )


def _evaluate(run: Run, heldout: Heldout, progress: Progress) -> Progress:
    row = heldout.evaluate(step=progress.step)
    position = run.plan.position(step=progress.step, tokens=progress.tokens)
    run.metrics.log_evaluation(position | row)
    counts = progress.step > 0 and _is_evaluated(run, progress.step)
    return judged(progress, decisive_loss(row, run.recipe.ema), counts=counts)
