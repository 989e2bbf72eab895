"""The progress of a run, as its checkpoints store it."""

from __future__ import annotations

from dataclasses import dataclass

from training.regularisers.base import SavedThreshold


@dataclass(frozen=True)
class Progress:
    """Where the run is: everything that follows is determined by it and the recipe."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens of documents trained, without padding."""
    threshold: SavedThreshold | None = None
    """For recipes whose next step drops by an earlier threshold."""
    heldout_loss: float | None = None
    """Of the newest evaluation, in nats per token; decides which checkpoints are the best."""
    evaluated_step: int | None = None
    """Step of the newest evaluation."""
    best_loss: float | None = None
    """The lowest held-out loss of the evaluations since the first step."""
    best_step: int | None = None
    """Its step."""
    num_since_best: int = 0
    """Evaluations after it."""
    epoch_digest: int = 0
    """Of the samples of the current epoch so far (`epoch_digest`)."""
    recent_losses: tuple[float, ...] = ()
    """Of the steps that the next one is compared with (`loss_guard`)."""
    recent_grad_norms: tuple[float, ...] = ()
    """Likewise."""
    left_out: tuple[int, ...] = ()
    """Steps, from 0, whose batch makes no update."""
    num_bad_in_row: int = 0
    """Consecutive steps up to this one that were skipped or rolled back."""
    run_key: str | None = None
    """By which trackers and `checkpoint.mirror` know the run; None without either."""
