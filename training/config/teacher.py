"""The section of a recipe on a teacher: other weights whose predictions are learnt, too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from common.commands import command
from training.config.sections import STRICT, Name


@dataclass(config=STRICT)
class Teacher:
    """Keeps the model near another one, or a copy of itself (Hinton et al., arXiv 1503.02531).

    A token's loss is (1 - weight) times what it is without a teacher, label smoothing and z-loss
    included, plus weight times the cross-entropy to the prediction of the teacher, which sees the
    text without dropped tokens and without noise.
    """

    kind: Literal["ema", "base", "scores"]
    """ema: the moving average of the weights, as `ema` makes it (mean teacher, arXiv 1703.01780).
    base: the weights that the run began with (learning without forgetting, arXiv 1606.09282).
    scores: any model with this tokenizer, whose likeliest tokens were stored beforehand; it takes
    no memory of a GPU and no forward pass."""
    scores: Name | None = None
    """kind scores: which scores of the corpus, from `python -m data_prep score --top-k K`. Tokens
    that are not among the K likeliest count as one; a token without a prediction has the
    cross-entropy to the text alone."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    on: Literal["all", "domain", "replay"] = "all"
    """Which tokens: all, only those of `data.corpus`, or only those of `replay`. Others have the
    cross-entropy to the text alone."""

    @property
    def runs(self) -> bool:
        """Whether it makes its predictions in the run, by a forward pass of its own."""
        return self.kind != "scores"

    @model_validator(mode="after")
    def _names_what_it_reads(self) -> Teacher:
        if self.kind == "scores" and self.scores is None:
            how = command("data_prep score DIR --top-k 32 --name NAME ...")
            raise ValueError(
                "teacher.kind: scores needs teacher.scores, the name of stored predictions; make "
                f"some with `{how}`"
            )
        if self.kind != "scores" and self.scores is not None:
            raise ValueError(
                f"teacher.scores {self.scores!r} is read with teacher.kind: scores alone (is "
                f"{self.kind})"
            )
        return self
