"""The section of a recipe on where a step's time goes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from training.config.sections import STRICT


@dataclass(config=STRICT)
class Profile:
    """Some steps under torch's profiler, on rank 0: a trace in RUN/profile, for perfetto.dev."""

    first_step: Annotated[int, Field(ge=1)] = 10
    """The first of them, counted from the start of the run: behind those that warm up."""
    num_steps: Annotated[int, Field(ge=1, le=100)] = 2
    """How many. A trace has thousands of events a micro-step."""
