"""The section of a recipe on averaged weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from training.config.sections import STRICT


@dataclass(config=STRICT)
class Ema:
    """An exponential moving average of the weights, evaluated beside them and exported by
    `--weights ema` (Polyak and Juditsky, 1992; Morales-Brotons et al., arXiv 2411.18704)."""

    half_life_epochs: Annotated[float, Field(gt=0)] | None = None
    """Epochs after which a step counts half. One of the two is needed."""
    half_life_steps: Annotated[float, Field(gt=0)] | None = None
    """The same in optimizer steps."""
    decides_best: bool = False
    """Whether the held-out loss of the average, not that of the weights, decides what is best."""

    @model_validator(mode="after")
    def _has_one_half_life(self) -> Ema:
        if (self.half_life_epochs is None) == (self.half_life_steps is None):
            raise ValueError("set exactly one of ema.half_life_epochs and ema.half_life_steps")
        return self

    def decay(self, *, steps_per_epoch: float) -> float:
        """The factor of the old average in a step."""
        steps = self.half_life_steps
        if steps is None:
            assert self.half_life_epochs is not None
            steps = self.half_life_epochs * steps_per_epoch
        return float(0.5 ** (1.0 / steps))
