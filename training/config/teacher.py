"""The section of a recipe on a teacher: other weights whose predictions are learnt, too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from training.config.sections import STRICT


@dataclass(config=STRICT)
class Teacher:
    """Keeps the model near a slower or older copy of itself (Hinton et al., arXiv 1503.02531).

    A token's loss is (1 - weight) times what it is without a teacher, label smoothing and z-loss
    included, plus weight times the cross-entropy to the prediction of the teacher, which sees the
    text without dropped tokens and without noise.
    """

    kind: Literal["ema", "base"]
    """ema: the moving average of the weights, as `ema` makes it (mean teacher, arXiv 1703.01780).
    base: the weights that the run began with (learning without forgetting, arXiv 1606.09282)."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    on: Literal["all", "domain", "replay"] = "all"
    """Which tokens: all, only those of `data.corpus`, or only those of `replay`. Others have the
    cross-entropy to the text alone."""
