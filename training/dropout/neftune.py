"""NEFTune: uniform noise on the embeddings of training inputs.

Jain et al.: NEFTune: Noisy Embeddings Improve Instruction Finetuning, 2023.

B rows, S tokens of this rank's sequence shard, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.entrodrop.counter_rng import NOISE_STREAM, token_keys, uniform_from_keys


def neftune_noise(batch: MicroBatch, recipe: Recipe, *, num_channels: int) -> Tensor | None:
    """Noise of each embedding, fp32 `[B, S, D]`; None when the recipe has none.

    Uniform in [-1, 1] times alpha / sqrt(L D), where L is the length of the token's own document
    in the sample, not of the sample. Drawn by the identity of token and channel, so the same on
    every layout and after a resume.
    """
    if not recipe.applies("neftune"):
        return None
    channels_D = torch.arange(num_channels, device=batch.ids_BS.device)
    index_BSD = batch.token_index_BS1[:, :-1, None] * num_channels + channels_D
    keys_BSD = token_keys(index_BSD, seed=recipe.seed, stream=NOISE_STREAM)
    scale_BS = recipe.baseline.neftune_alpha / (batch.document_tokens_BS * num_channels).sqrt()
    return (uniform_from_keys(keys_BSD).float() * 2 - 1) * scale_BS[..., None]
