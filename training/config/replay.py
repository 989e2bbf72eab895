"""The section of a recipe on replay: general text among the domain's, against forgetting."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from training.config.sections import STRICT, Location


@dataclass(config=STRICT)
class Replay:
    """General text among the samples of `data.corpus`, which are seen as often as without it."""

    corpus: Location
    """Folder written by `python -m data_prep build` with the tokenizer of `data.corpus`, packed for
    the same number of tokens. Its train split is drawn from, all domains alike."""
    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of an epoch's tokens, rounded to whole samples: 0.25 adds one token of replay to every
    three of `data.corpus`. An epoch gets longer by that."""
    repeats: bool = False
    """false: no sample of replay comes twice in a run, and a run that needs more than there are is
    refused. true: when all have been seen, they come again in another order."""
