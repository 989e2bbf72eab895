"""The sections of token dropout: where entropies come from, which tokens drop, and how often."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from training.config.sections import STRICT, Fraction, Name, NonNegative


@dataclass(config=STRICT)
class Entropy:
    """Where token entropies come from."""

    source: Literal["online", "reference", "cache"] = "online"
    """online: a forward pass without gradient over the step's own batch, unmasked. reference:
    scores by a frozen model, from `python -m data_prep score`. cache: what the training forward
    itself measured when it last saw the sample, which costs no extra pass."""
    scores: Name = "reference"
    """reference, and the baseline rho1: which scores of the corpus. cache: fallback where it has no
    value yet, if they exist; without them nothing drops in the first epoch."""
    cache_keeps: Literal["clean", "latest"] = "clean"
    """cache: which of a token's measurements. clean: the last one with no dropped input before it
    in its document, else the last; latest: the last one."""
    scope: Literal["batch", "corpus"] = "batch"
    """Whose quantile is the threshold. batch: the tokens of the optimizer step; corpus: those of
    all samples, recomputed at each epoch's start (reference and cache), without replay."""
    threshold: Literal["step", "lagged"] = "step"
    """step: the quantile of the step's own tokens. lagged: that of the previous step, applied to
    the training forward's own entropies, which costs no extra pass; for source: online with where:
    loss."""
    measure: Literal["shannon", "nll"] = "shannon"
    """shannon: entropy of the predictive distribution; nll: the token's own cross-entropy."""


@dataclass(config=STRICT)
class Curriculum:
    """How the drop rate rises with trained tokens / planned tokens."""

    kind: Literal["sigmoid", "linear", "cosine", "constant"] = "sigmoid"
    midpoint: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """sigmoid only: progress at which half of max_rate is reached."""
    steepness: Annotated[float, Field(gt=0)] = 10.0
    """sigmoid only: slope; larger is closer to a step."""


@dataclass(config=STRICT)
class Dropout:
    """Which tokens are dropped, how often, and what that does."""

    where: Literal["input", "loss", "both"] = "input"
    """input: the embedding is replaced; loss: the term is left out of the loss."""
    replace: Literal["zero", "mean", "mask_token", "random_token"] = "zero"
    """What replaces a dropped token's embedding; mean: the mean over the vocabulary."""
    mask_token_id: NonNegative | None = None
    """Token id for replace: mask_token."""
    quantile: Fraction = 0.5
    """Share of the step's tokens, lowest entropy first, that is low."""
    side: Literal["low", "high"] = "low"
    """high: the share of highest entropy instead, as a control: is it low entropy that helps?"""
    guidance: Fraction = 1.0
    """How much entropy decides. 1: only low tokens drop; 0: all with an entropy drop alike, as in
    random_token_dropout; between: the others drop too, less often, at the same mean rate."""
    softness: Annotated[float, Field(gt=0)] | None = None
    """null: two steps, low tokens and others. A number: each token's drop probability falls
    smoothly with its entropy, none is 0, and the mean rate stays; the number is the width of the
    fall around the quantile, in mean entropies of the step."""
    max_rate: Fraction = 0.3
    """Drop probability of a low token at the end of the curriculum (gamma_max), at guidance 1."""
    sample_rates: Literal["equal", "uniform"] = "equal"
    """uniform: each sample's rates times a number of its own from U(0, 1), drawn at each visit, so
    that the mean rate is half of the one asked (masks of many sizes, arXiv 2606.06888)."""
    renormalise: bool = True
    """loss and both: divide by the expected kept share, so that the loss keeps its scale."""
    curriculum: Curriculum = Field(default_factory=Curriculum)

    @model_validator(mode="after")
    def _consistent(self) -> Dropout:
        if self.replace == "mask_token" and self.mask_token_id is None:
            raise ValueError("dropout.replace: mask_token needs dropout.mask_token_id")
        if self.where != "input" and self.renormalise and self.quantile * self.max_rate >= 1:
            raise ValueError(
                "dropout.quantile * dropout.max_rate must stay below 1: nothing would be left"
            )
        if self.softness is not None and self.max_rate > 0.5:
            raise ValueError(
                f"dropout.softness needs dropout.max_rate of at most 0.5 (is {self.max_rate:g}): "
                "the surest tokens drop up to twice as often, and a probability would exceed 1"
            )
        return self
