"""NEFTune: uniform noise on the embeddings of training inputs.

Jain et al.: NEFTune: Noisy Embeddings Improve Instruction Finetuning, 2023.

B rows, S tokens of this rank's sequence shard, D channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.entrodrop.counter_rng import NOISE_STREAM, token_keys, uniform_from_keys
from training.model.inputs import ModelInputs
from training.regularisers.base import Regulariser, RunParts


class NEFTune(Regulariser):
    """Noise of each embedding: uniform in [-1, 1] times alpha / sqrt(L D).

    L is the length of the token's own document in the sample, not of the sample. Drawn by the
    identity of token and channel, so the same on every layout and after a resume.
    """

    def __init__(self, *, alpha: float, seed: int, num_channels: int) -> None:
        self._alpha, self._seed, self._num_channels = alpha, seed, num_channels

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        alpha = recipe.baseline.neftune_alpha
        return cls(alpha=alpha, seed=recipe.seed, num_channels=parts.engine.hidden_size)

    def change_inputs(self, inputs: ModelInputs, batch: MicroBatch, micro_step: int) -> ModelInputs:
        return replace(inputs, noise_BSD=self.noise_BSD(batch))

    def noise_BSD(self, batch: MicroBatch) -> Tensor:
        """fp32 `[B, S, D]`."""
        channels_D = torch.arange(self._num_channels, device=batch.ids_BS.device)
        index_BSD = batch.token_index_BP[:, :-1, None] * self._num_channels + channels_D
        keys_BSD = token_keys(index_BSD, seed=self._seed, stream=NOISE_STREAM)
        scale_BS = self._alpha / (batch.document_tokens_BS * self._num_channels).sqrt()
        return (uniform_from_keys(keys_BSD).float() * 2 - 1) * scale_BS[..., None]
