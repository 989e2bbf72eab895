"""The sections of a recipe on held-out data: its sets, what counts as best, when to stop."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from common.hints import did_you_mean
from training.config.sections import STRICT, Location, Positive

WEIGHTED = "weighted"
ONLY_SET = "held-out"
"""Name of the one set of a recipe that lists none."""
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]


@dataclass(config=STRICT)
class HeldoutData:
    """Which samples make up a held-out set; `{}` is the validation split of `data.corpus`."""

    corpus: Location | None = None
    """Folder written by `python -m data_prep build` with the tokenizer of `data.corpus`, packed for
    the same number of tokens; null is `data.corpus` itself."""
    domain: str | None = None
    """Only this domain of the corpus; null is all of them."""
    split: Literal["val", "train"] = "val"
    """train is for a corpus that no run trains on; one that this run trains on is refused."""
    max_samples: Positive | None = None
    """Use only this many samples, the first ones; null uses `evaluation.max_samples`."""


@dataclass(config=STRICT)
class Evaluation:
    """Held-out loss, by set and by entropy band."""

    every_steps: Positive | None = 100
    """null trains without held-out data."""
    max_samples: Positive | None = None
    """Use only this many samples of a set, the first ones; null uses all."""
    num_bands: Annotated[int, Field(ge=1, le=64)] = 4
    """Bands of equal size, cut by the entropies of the model at step 0 and then frozen."""
    prompts: Location | None = None
    """File with a prompt in each line, or a .jsonl file with `{"prompt": "..."}`: each evaluation
    continues them with the current weights, always by the likeliest token."""
    prompt_tokens: Positive = 32
    """Tokens that follow each prompt; each takes a forward pass of one micro-batch."""
    sets: dict[SetName, HeldoutData] | None = None
    """Several held-out sets by name: `{domain: {}, general: {corpus: data/general}}`. null is one,
    the validation split of `data.corpus`."""
    best_by: str | None = None
    """Which held-out loss decides what is best: that of a set, by its name, or `weighted`, the mean
    by `evaluation.weights`. null is the set that is listed first."""
    weights: dict[SetName, Annotated[float, Field(ge=0)]] | None = None
    """best_by: weighted only. By set, its weight: `{domain: 2, general: 1}`. They need not sum to
    1; a set that is not named has weight 0."""

    @property
    def named_sets(self) -> dict[str, HeldoutData]:
        """One at least."""
        return dict(self.sets) if self.sets else {ONLY_SET: HeldoutData()}

    @property
    def decides_best(self) -> str | None:
        """`best_by`, or the set that is listed first; None where there is but one."""
        return self.best_by or next(iter(self.sets or {}), None)

    @property
    def best_weights(self) -> dict[str, float]:
        """By set, its share of the loss that decides what is best; they sum to 1."""
        if self.weights is None:
            return {self.decides_best or ONLY_SET: 1.0}
        whole = sum(self.weights.values())
        return {name: weight / whole for name, weight in self.weights.items() if weight}

    @model_validator(mode="after")
    def _best_is_a_set(self) -> Evaluation:
        sets = list(self.sets or {})
        if WEIGHTED in sets:
            raise ValueError(
                f"evaluation.sets.{WEIGHTED}: a set cannot have this name, which best_by uses"
            )
        if self.sets is not None and not sets:
            raise ValueError("evaluation.sets: name at least one; null is the validation split")
        if self.best_by not in (None, WEIGHTED, *sets):
            known = [*sets, WEIGHTED] if sets else []
            raise ValueError(f"evaluation.best_by: {_no_set(self.best_by, known)}")
        if (self.best_by == WEIGHTED) != (self.weights is not None):
            raise ValueError(
                f"evaluation.best_by: {WEIGHTED} and evaluation.weights need each other (are "
                f"{self.best_by} and {self.weights})"
            )
        for name in self.weights or {}:
            if name not in sets:
                raise ValueError(f"evaluation.weights.{name}: {_no_set(name, sets)}")
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("evaluation.weights: at least one must be above 0")
        if self.weights is not None and not math.isfinite(sum(self.weights.values())):
            raise ValueError("evaluation.weights: too large to be added up")
        return self


def _no_set(name: object, known: list[str]) -> str:
    otherwise = f"there are {', '.join(known)}" if known else "evaluation.sets names none"
    return f"no held-out set {name!r}{did_you_mean(name, known, otherwise=otherwise)}"
