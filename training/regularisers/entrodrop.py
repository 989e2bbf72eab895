"""EntroDrop: tokens of low entropy drop, by a threshold known before the forward passes."""

from __future__ import annotations

from training.config.dropout import Dropout
from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.model.inputs import Scored
from training.regularisers.base import Regulariser, RunParts, SavedThreshold, Step, StepDropout
from training.regularisers.corpus_threshold import CorpusThreshold, corpus_threshold
from training.regularisers.drop_sets import (
    drop_low_of_corpus,
    drop_low_of_step,
    gamma_at,
)
from training.regularisers.entropy_source import EntropySource, choose_source
from training.regularisers.lagged import LaggedEntroDrop
from training.regularisers.token_dropout import TokenDropout


class EntroDrop(TokenDropout):
    """The method, with the quantile of the step or of the corpus as the threshold."""

    def __init__(
        self,
        settings: Dropout,
        *,
        source: EntropySource,
        corpus: CorpusThreshold | None,
        seed: int,
        vocab_size: int,
    ) -> None:
        """`corpus` decides which tokens are low; without it the quantile of the step does."""
        super().__init__(settings, where=settings.where, seed=seed, vocab_size=vocab_size)
        self._source, self._corpus = source, corpus

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        if recipe.is_lagged:
            return LaggedEntroDrop.build(recipe, parts)
        source = choose_source(recipe, parts)
        return cls(
            recipe.dropout,
            source=source,
            corpus=corpus_threshold(recipe, source, parts),
            seed=recipe.seed,
            vocab_size=parts.engine.vocab_size,
        )

    @property
    def threshold(self) -> SavedThreshold | None:
        return self._corpus.threshold if self._corpus else None

    def choose(self, step: Step) -> StepDropout:
        # in every step, dropping or not: it is recomputed where an epoch begins
        low = self._corpus.low_set(step.stream, step.number) if self._corpus else None
        gamma = gamma_at(self._settings, step.trained_frac)
        if gamma == 0.0:
            return StepDropout()
        entropy_RP = self._source.of_step(step.batches)
        if low is None:
            return drop_low_of_step(
                entropy_RP,
                step.batches,
                self._settings,
                seed=self._seed,
                gamma=gamma,
                num_targets=step.num_targets,
            )
        return drop_low_of_corpus(
            entropy_RP,
            step.batches,
            low,
            self._settings,
            seed=self._seed,
            gamma=gamma,
            num_targets=step.num_targets,
        )

    def observe(self, batch: MicroBatch, micro_step: int, scored: Scored) -> None:
        self._source.observe(batch, scored, self.input_drops_BS(micro_step))

    def end_step(self, step: Step) -> None:
        self._source.end_step(step.stream, step.number)
