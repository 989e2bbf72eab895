"""What replaces the embedding of a dropped token.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.config.dropout import Dropout
from training.data.stream import MicroBatch
from training.entrodrop.counter_rng import REPLACE_STREAM, integers_from_keys, token_keys


def check_mask_token(settings: Dropout, *, vocab_size: int) -> None:
    """Refuse a mask token that the embedding does not have.

    Raises:
        ValueError: naming the ids that it has.
    """
    mask_token_id = settings.mask_token_id
    if mask_token_id is not None and mask_token_id >= vocab_size:
        raise ValueError(
            f"dropout.mask_token_id {mask_token_id}: the model's ids are 0 to {vocab_size - 1}"
        )


def masked_input(
    batch: MicroBatch, drops_BS: Tensor, settings: Dropout, *, seed: int, vocab_size: int
) -> tuple[Tensor, Tensor | None]:
    """Token ids to embed, and which embeddings the model itself replaces (by 0 or the mean)."""
    if settings.replace in ("zero", "mean"):
        return batch.ids_BS, drops_BS
    if settings.replace == "mask_token":
        return batch.ids_BS.masked_fill(drops_BS, settings.mask_token_id or 0), None
    random_BS = random_tokens(batch, seed=seed, stream=REPLACE_STREAM, vocab_size=vocab_size)
    return torch.where(drops_BS, random_BS, batch.ids_BS), None


def random_tokens(batch: MicroBatch, *, seed: int, stream: int, vocab_size: int) -> Tensor:
    """One for each position of the shard, uniform over the vocabulary, int64 `[B, S]`."""
    keys_BS = token_keys(batch.token_index_BP[:, :-1], seed=seed, stream=stream)
    return integers_from_keys(keys_BS, high=vocab_size)
