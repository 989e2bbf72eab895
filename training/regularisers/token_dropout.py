"""Base of the regularisers that draw which tokens of a step drop, before its forward passes.

B rows, S tokens of this rank's sequence shard, P = S + 1 with the token after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from training.config.dropout import Dropout
from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.model.inputs import ModelInputs, Scored
from training.regularisers.base import Regulariser, Step, StepDropout
from training.regularisers.replacement import masked_input


class TokenDropout(Regulariser, ABC):
    """Tokens drop: their embedding is replaced, their loss is left out, or both."""

    def __init__(
        self,
        settings: Dropout,
        *,
        where: Literal["input", "loss", "both"],
        seed: int,
        vocab_size: int,
    ) -> None:
        """`where` overrides that of the settings, which decide what replaces an embedding."""
        self._settings, self._seed, self._vocab_size = settings, seed, vocab_size
        self._drops_inputs = where != "loss"
        self.drops_losses = where != "input"
        self._dropped_BP: tuple[Tensor, ...] = ()

    @classmethod
    def in_model(cls, recipe: Recipe) -> dict[str, Any]:
        return {"replaces_by_mean": recipe.dropout.replace == "mean"}

    @abstractmethod
    def choose(self, step: Step) -> StepDropout:
        """The drops of a step; none depends on this rank's own tokens alone."""

    def begin_step(self, step: Step) -> StepDropout:
        chosen = self.choose(step)
        self._dropped_BP = chosen.dropped_BP
        if self.drops_losses and self._settings.renormalise:
            return replace(chosen, kept_share=1.0 - chosen.rate_asked)
        return chosen

    def change_inputs(self, inputs: ModelInputs, batch: MicroBatch, micro_step: int) -> ModelInputs:
        drops_BS = self.input_drops_BS(micro_step)
        if drops_BS is None:
            return inputs
        ids_BS, replaced_BS = masked_input(
            batch, drops_BS, self._settings, seed=self._seed, vocab_size=self._vocab_size
        )
        return replace(inputs, ids_BS=ids_BS, replaced_BS=replaced_BS)

    def input_drops_BS(self, micro_step: int) -> Tensor | None:
        """Tokens of the shard whose embedding is replaced; None for none."""
        if not self._dropped_BP or not self._drops_inputs:
            return None
        return self._dropped_BP[micro_step][:, :-1]

    def target_drops_BS(
        self, batch: MicroBatch, micro_step: int, scored: Scored | None
    ) -> Tensor | None:
        """A position's target is the token after it."""
        return self._dropped_BP[micro_step][:, 1:] if self._dropped_BP else None
