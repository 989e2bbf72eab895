"""Random-token replacement: targets become random tokens as inputs, while labels stay.

Measured on little data in arXiv 2606.16246; the idea is that of the third kind of noise of BERT
(arXiv 1810.04805, section 3.1).

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.entrodrop.counter_rng import (
    REPLACED_STREAM,
    REPLACEMENT_STREAM,
    token_keys,
    uniform_from_keys,
)
from training.model.inputs import ModelInputs
from training.regularisers.base import Regulariser, RunParts
from training.regularisers.replacement import random_tokens


class TokenReplacement(Regulariser):
    """At one rate from the first step to the last, without a curriculum.

    It has draws of its own, so that beside token dropout neither depends on the other. A token that
    both would change is a random one.
    """

    def __init__(self, *, rate: float, seed: int, vocab_size: int) -> None:
        self._rate, self._seed, self._vocab_size = rate, seed, vocab_size

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        return cls(
            rate=recipe.baseline.token_replacement,
            seed=recipe.seed,
            vocab_size=parts.engine.vocab_size,
        )

    def change_inputs(self, inputs: ModelInputs, batch: MicroBatch, micro_step: int) -> ModelInputs:
        is_replaced_BS = self.is_replaced_BS(batch)
        random_BS = random_tokens(
            batch, seed=self._seed, stream=REPLACEMENT_STREAM, vocab_size=self._vocab_size
        )
        kept_BS = inputs.replaced_BS
        return replace(
            inputs,
            ids_BS=torch.where(is_replaced_BS, random_BS, inputs.ids_BS),
            replaced_BS=None if kept_BS is None else kept_BS & ~is_replaced_BS,
        )

    def is_replaced_BS(self, batch: MicroBatch) -> Tensor:
        """Bool `[B, S]`, tokens of the shard that are a target and become another."""
        index_BS = batch.token_index_BP[:, :-1]
        uniform_BS = uniform_from_keys(
            token_keys(index_BS, seed=self._seed, stream=REPLACED_STREAM)
        )
        return batch.is_target_token_BP[:, :-1] & (uniform_BS < self._rate)
