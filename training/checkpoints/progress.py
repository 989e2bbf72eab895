"""Where a run is, as its checkpoints keep it."""

from __future__ import annotations

from dataclasses import dataclass

from training.regularisers.base import SavedThreshold


@dataclass(frozen=True)
class Progress:
    """Where the run is: everything else of the future follows from it and the recipe."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens of documents trained, padding left out."""
    threshold: SavedThreshold | None = None
    """For recipes whose next step drops by one that was found before."""
    heldout_loss: float | None = None
    """Of the newest evaluation, in nats per token; it decides which checkpoints are the best."""
    epoch_digest: int = 0
    """Of the samples of the epoch that is under way (`epoch_proof`)."""
    recent_losses: tuple[float, ...] = ()
    """Of the steps that a next one is compared with (`loss_guard`)."""
    recent_grad_norms: tuple[float, ...] = ()
    """Likewise."""
    left_out: tuple[int, ...] = ()
    """Steps, from 0, whose batch is gone through without an update."""
    num_bad_in_row: int = 0
    """Steps before this one that were skipped or rolled back."""
