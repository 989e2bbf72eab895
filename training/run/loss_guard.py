"""Steps that should not be learnt from: a non-finite loss, a spike, an exploding gradient."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from training.config.sections import Guard

_MIN_STEPS = 16
"""Steps needed before one can be called a spike."""
_LEAST_SPREAD = 0.02
"""Share of the mean: after a long plateau every ripple is many sigmas high."""
_RERUN_TOLERANCE = 1e-3

Action = Literal["report", "skip", "rollback", "stop"]


@dataclass(frozen=True)
class BadStep:
    """What is wrong with a step, and the action that the recipe sets."""

    reason: str
    action: Action


class LossGuard:
    """Compares each step with those before it (as OLMo's SkipStep: sigmas over a window).

    The window is part of a checkpoint, so that a resumed run decides as it would have.
    """

    def __init__(
        self, settings: Guard, *, losses: Iterable[float] = (), grad_norms: Iterable[float] = ()
    ) -> None:
        self._settings = settings
        self._losses = deque(losses, maxlen=settings.window_steps)
        self._grad_norms = deque(grad_norms, maxlen=settings.window_steps)

    @property
    def losses(self) -> tuple[float, ...]:
        """Of the steps in the window, oldest first."""
        return tuple(self._losses)

    @property
    def grad_norms(self) -> tuple[float, ...]:
        """Likewise."""
        return tuple(self._grad_norms)

    @property
    def decides_before_update(self) -> bool:
        """Whether a step's loss must be known before its update; the same on every rank."""
        return self._settings.on_spike in ("skip", "rollback", "stop")

    def examine_loss(self, loss: float) -> BadStep | None:
        """What is wrong with a step, by its loss alone."""
        if not math.isfinite(loss):
            return BadStep(f"loss is {loss}", self._settings.on_not_finite)
        return self._spike("loss", loss, self._losses)

    def examine_gradient(self, norm: float) -> BadStep | None:
        """What is wrong with a step, by the norm of its gradient before clipping."""
        if not math.isfinite(norm):
            return BadStep(f"gradient norm is {norm}", self._settings.on_not_finite)
        found = self._spike("gradient norm", norm, self._grad_norms)
        # The clipped update has happened: what is left is to report it, or to roll back.
        return BadStep(found.reason, "report") if found and found.action == "skip" else found

    def examine(self, *, loss: float, grad_norm: float) -> BadStep | None:
        """What is wrong with a step; a good one counts for those that come later."""
        bad = self.examine_loss(loss) or self.examine_gradient(grad_norm)
        if bad is None or bad.action == "report":
            self.keep(loss=loss, grad_norm=grad_norm)
        return bad

    def keep(self, *, loss: float, grad_norm: float) -> None:
        """Count a step among those that later ones are compared with."""
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)

    def _spike(self, name: str, value: float, window: deque[float]) -> BadStep | None:
        if self._settings.spike_sigmas is None or len(window) < _MIN_STEPS:
            return None
        mean = fmean(window)
        sigma = max(pstdev(window), _LEAST_SPREAD * abs(mean))
        distance = (value - mean) / sigma if sigma else 0.0
        if distance <= self._settings.spike_sigmas:
            return None
        reason = (
            f"{name} {value:.4g} is {distance:.1f} sigmas above the mean {mean:.4g} of the last "
            f"{len(window)} steps"
        )
        return BadStep(reason, self._settings.on_spike)


def judge_rerun(first: float, second: float) -> str:
    """What a second forward pass over the same batch, with the same weights, shows.

    Megatron-LM's rerun state machine asks the same question.
    """
    if _agree(first, second):
        return f"a rerun gave {second:.6g}: the batch or the weights are at fault"
    return f"a rerun gave {second:.6g}, not {first:.6g}: the machine is at fault"


def _agree(first: float, second: float) -> bool:
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.isfinite(first) == math.isfinite(second)
    return abs(first - second) <= _RERUN_TOLERANCE * max(abs(first), abs(second))
