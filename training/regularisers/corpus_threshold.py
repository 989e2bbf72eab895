"""Which tokens are low among all samples of the run, not of a step (`entropy.scope: corpus`).

T tokens of a sample.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_prep.shards import Mixture
from training.config.recipe import Recipe
from training.data.joined_pack import SamplePack
from training.data.stream import IGNORE, SampleStream, next_token_targets
from training.entrodrop.mask import LowSet, select_low_tokens
from training.ranks.dist import Layout
from training.regularisers.base import RunParts, SavedThreshold
from training.regularisers.entropy_source import EntropySource, KeptEntropies

_SAMPLES_AT_ONCE = 64


class CorpusThreshold:
    """The quantile over the targets of all samples of the run, recomputed at each epoch's start.

    Each rank reads its share of the samples and holds 20 bytes for each of their tokens while it
    counts; communication is of fixed size.
    """

    def __init__(
        self,
        source: KeptEntropies,
        pack: SamplePack,
        mixture: Mixture,
        layout: Layout,
        *,
        quantile: float,
        seed: int,
        threshold: SavedThreshold | None,
    ) -> None:
        self._source = source
        self._pack = pack
        self._layout = layout
        self._quantile, self._seed = quantile, seed
        self._samples = np.concatenate(
            [np.asarray(share.samples) for share in mixture if share.samples_per_epoch]
        )
        self._low = threshold.low_set(seed=seed) if threshold else None

    @property
    def threshold(self) -> SavedThreshold | None:
        """For a checkpoint."""
        return SavedThreshold.of(self._low) if self._low else None

    def low_set(self, stream: SampleStream, step: int) -> LowSet:
        """That of the step; every rank calls it together, in every step, dropping or not."""
        begins_epoch = step > 0 and stream.epochs_of(step)[0] != stream.epochs_of(step - 1)[0]
        if self._low is None or begins_epoch:
            self._low = self._find()
        return self._low

    def _find(self) -> LowSet:
        own = self._samples[self._layout.rank :: self._layout.world_size]
        values, indices = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
        for start in range(0, len(own), _SAMPLES_AT_ONCE):
            found, index = self._values(own[start : start + _SAMPLES_AT_ONCE])
            values.append(found)
            indices.append(index)
        device = self._layout.device
        return select_low_tokens(
            torch.cat(values).to(device),
            torch.cat(indices).to(device),
            q=self._quantile,
            seed=self._seed,
        )

    def _values(self, samples: np.ndarray) -> tuple[Tensor, Tensor]:
        """Of the samples' targets that have a value: fp32 `[n]`, and identities, int64 `[n]`."""
        length = self._pack.seq_len
        value_BT = self._source.rows(tuple(samples.tolist()), first=0, count=length)
        is_target_BT = np.zeros(value_BT.shape, dtype=bool)
        for row, sample in enumerate(samples.tolist()):
            # a position's target is the token after it
            is_target_BT[row, 1:] = next_token_targets(self._pack.sample(sample))[:-1] != IGNORE
        is_valid_BT = is_target_BT & ~np.isnan(value_BT)
        index_BT = samples[:, None].astype(np.int64) * length + np.arange(length)
        return torch.from_numpy(value_BT[is_valid_BT]), torch.from_numpy(index_BT[is_valid_BT])


def corpus_threshold(
    recipe: Recipe, source: EntropySource, parts: RunParts
) -> CorpusThreshold | None:
    """For recipes with `entropy.scope: corpus`; None for others."""
    if recipe.entropy.scope != "corpus":
        return None
    if not isinstance(source, KeptEntropies):
        raise TypeError(f"entropy.scope: corpus with {type(source).__name__}")
    return CorpusThreshold(
        source,
        parts.pack,
        parts.mixture,
        parts.engine.layout,
        quantile=recipe.dropout.quantile,
        seed=recipe.seed,
        threshold=parts.threshold,
    )
