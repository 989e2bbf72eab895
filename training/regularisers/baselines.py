"""Standard regularisers to compare the method with or combine it with; NEFTune has its own file."""

from __future__ import annotations

from typing import Any

from training.config.recipe import Recipe
from training.config.sections import Dropout
from training.entrodrop.mask import DropRates, draw_drops
from training.regularisers.base import Regulariser, RunParts, Step, StepDropout
from training.regularisers.drop_sets import drop_lowest, gamma_at
from training.regularisers.entropy_source import (
    EntropySource,
    ExcessLoss,
    OnlineProbe,
    ReferenceScores,
)
from training.regularisers.token_dropout import TokenDropout


class RandomTokenDropout(TokenDropout):
    """The baseline: any target drops, whatever its entropy, at EntroDrop's mean rate."""

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        return cls(
            recipe.dropout,
            where=recipe.dropout.where,
            seed=recipe.seed,
            vocab_size=parts.engine.vocab_size,
        )

    def choose(self, step: Step) -> StepDropout:
        gamma = gamma_at(self._settings, step.trained_frac)
        if gamma == 0.0:
            return StepDropout()
        rate = gamma * self._settings.quantile
        return StepDropout(
            gamma=gamma,
            rate_asked=rate,
            dropped_BP=tuple(
                draw_drops(
                    batch.is_target_token_BP, batch.token_index_BP, rate=rate, seed=self._seed
                )
                for batch in step.batches
            ),
        )


class Rho1(TokenDropout):
    """The baseline: only the share of targets with the greatest excess loss stays in the loss.

    Lin et al.: Rho-1: Not All Tokens Are What You Need, 2024.
    """

    def __init__(
        self, settings: Dropout, *, source: EntropySource, share: float, seed: int, vocab_size: int
    ) -> None:
        super().__init__(settings, where="loss", seed=seed, vocab_size=vocab_size)
        self._source, self._share = source, share

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        assert parts.scores is not None  # `open_scores` has refused a corpus without scores
        return cls(
            recipe.dropout,
            source=ExcessLoss(
                OnlineProbe(parts.engine, measure="nll"),
                ReferenceScores(parts.pack, parts.scores, parts.engine.layout),
            ),
            share=recipe.baseline.rho1_share,
            seed=recipe.seed,
            vocab_size=parts.engine.vocab_size,
        )

    def choose(self, step: Step) -> StepDropout:
        return drop_lowest(
            self._source.of_step(step.batches),
            step.batches,
            rates=DropRates(gamma=1.0, q=1.0 - self._share),
            seed=self._seed,
            num_targets=step.num_targets,
        )


class HiddenDropout(Regulariser):
    """Channels of hidden states drop after every layer (`training/model/hidden_dropout.py`)."""

    @classmethod
    def in_model(cls, recipe: Recipe) -> dict[str, Any]:
        return {"hidden_dropout": recipe.baseline.hidden_dropout}


class LabelSmoothing(Regulariser):
    """A share of each target is spread over the vocabulary, in the head."""

    @classmethod
    def in_model(cls, recipe: Recipe) -> dict[str, Any]:
        return {"label_smoothing": recipe.baseline.label_smoothing}


class WeightDecay(Regulariser):
    """A stronger decay than the optimizer's own."""

    @classmethod
    def in_model(cls, recipe: Recipe) -> dict[str, Any]:
        return {"weight_decay": recipe.baseline.weight_decay}
