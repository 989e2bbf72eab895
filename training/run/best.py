"""What counts as best among the evaluations of a run, and when it has got worse for too long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from training.checkpoints.progress import Progress
from training.config.ema import Ema
from training.config.heldout import ONLY_SET, WEIGHTED, Evaluation
from training.config.sections import StopWhen


def evaluation_row(results: Mapping[str, dict[str, Any]], settings: Evaluation) -> dict[str, Any]:
    """One row of several sets: what decides what is best, its name in `best_by`, and `sets`.

    Args:
        results: by set, with `loss`, `seconds` and whatever else was measured; `sets` has them all.
    """
    if settings.sets is None:
        return results[ONLY_SET]
    weights = settings.best_weights
    keys = ["loss", "forgetting_nats", *(["ema_loss"] if _has_average(results) else [])]
    row = {key: _weighted(results, weights, key) for key in keys}
    best_by = WEIGHTED
    if len(weights) == 1:
        best_by = next(iter(weights))
        row = results[best_by]
    untimed = {
        name: {key: value for key, value in result.items() if key != "seconds"}
        for name, result in results.items()
    }
    seconds = sum(result["seconds"] for result in results.values())
    return row | {"best_by": best_by, "sets": untimed, "seconds": seconds}


def decisive_loss(row: Mapping[str, Any], ema: Ema | None) -> float | None:
    """Of an evaluation's row, the loss by which it may be the best."""
    loss: float | None = row["ema_loss" if ema is not None and ema.decides_best else "loss"]
    return loss


def _has_average(results: Mapping[str, dict[str, Any]]) -> bool:
    return any("ema_loss" in result for result in results.values())


def _weighted(
    results: Mapping[str, dict[str, Any]], weights: Mapping[str, float], key: str
) -> float | None:
    """None when a set has no such number."""
    if not all(key in results[name] for name in weights):
        return None
    return math.fsum(weight * results[name][key] for name, weight in weights.items())


def judged(progress: Progress, loss: float | None, *, counts: bool) -> Progress:
    """Progress after an evaluation at its step.

    Args:
        loss: what decides what is best; null and NaN are never the best.
        counts: False for an evaluation that an uninterrupted run would not have made, such as where
            it was told to stop: it says how good a checkpoint is, but does not end the run.
    """
    if progress.step == 0:  # of the base model, which no checkpoint holds
        return replace(progress, evaluated_step=0)
    loss = _number(loss)
    progress = replace(progress, heldout_loss=loss, evaluated_step=progress.step)
    if not counts:
        return progress
    if math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss):
        return replace(progress, best_loss=loss, best_step=progress.step, num_since_best=0)
    return replace(progress, num_since_best=progress.num_since_best + 1)


def is_best_so_far(progress: Progress) -> bool:
    """Whether its step has been evaluated and is better than all before."""
    return progress.step > 0 and progress.best_step == progress.step


def reason_to_end(progress: Progress, rule: StopWhen | None) -> str | None:
    """Why a run is over before its last step, or None.

    A function of what checkpoints hold, so that a resume of a run that is over does not train on.
    """
    if rule is None or progress.num_since_best < rule.worse_for:
        return None
    best = "no evaluation gave a number"
    if progress.best_loss is not None:
        best = f"the best is {progress.best_loss:.4f} at step {progress.best_step}"
    return (
        f"train.stop_when: held-out loss has no new best in {progress.num_since_best} evaluations; "
        f"{best}"
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
