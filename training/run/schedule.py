"""Learning rate as a pure function of the step, so that a resume needs no state."""

from __future__ import annotations

import math


def warmup_steps(total_steps: int, warmup_frac: float) -> int:
    """Steps of the linear rise."""
    return round(warmup_frac * total_steps)


def learning_rate(
    step: int,
    *,
    peak: float,
    total_steps: int,
    kind: str,
    warmup_frac: float,
    decay_frac: float,
    final_lr_frac: float,
) -> float:
    """Rate of the 0-based optimizer step.

    Args:
        step: steps done before this one, in [0, total_steps).
        kind: cosine | wsd (warm up, stay, decay linearly) | constant.
        warmup_frac: share of the steps with a linear rise; the first rate is above 0.
        decay_frac: wsd only, share of the steps with the linear fall.
        final_lr_frac: rate of the last step / peak, for cosine and wsd.
    """
    rise = warmup_steps(total_steps, warmup_frac)
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    if kind == "constant":
        return peak
    if kind == "wsd":
        decay_steps = round(decay_frac * total_steps)
        into_decay = step - (total_steps - decay_steps)
        fallen = (into_decay + 1) / decay_steps if into_decay >= 0 and decay_steps else 0.0
        return peak * (1.0 - fallen * (1.0 - final_lr_frac))
    if kind == "cosine":
        share = (step - rise) / max(total_steps - 1 - rise, 1)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
        return peak * (final_lr_frac + (1.0 - final_lr_frac) * cosine)
    raise ValueError(f"schedule.kind {kind!r}; valid: cosine, wsd, constant")
