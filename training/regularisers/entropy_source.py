"""Where the entropies of a step's tokens come from: the model itself, or stored values.

B rows, S tokens of this rank's sequence shard, P = S + 1 with the token after it, R rows of all
micro-batches, T tokens of a sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.commands import command
from data_prep.shards import PackIndex, Scores
from training.config.recipe import Recipe
from training.data.joined_pack import SamplePack, SampleScores
from training.data.stream import MicroBatch, SampleStream
from training.entrodrop.entropy import token_entropies
from training.entrodrop.mask import masked_contexts
from training.model.engine import Engine
from training.model.inputs import ModelInputs, Scored
from training.ranks.dist import Layout
from training.regularisers.base import RunParts
from training.regularisers.entropy_cache import EntropyCache


class EntropySource(ABC):
    """Gives the entropies of a step's tokens before its forward pass."""

    @abstractmethod
    def of_step(self, batches: list[MicroBatch]) -> Tensor:
        """fp32 `[R, P]`: each shard's tokens and the one after it, in nats.

        +inf at tokens that are not a target or have no value; those never drop.
        """

    def observe(  # noqa: B027  (only a cache has something to record)
        self, batch: MicroBatch, scored: Scored, input_drops_BS: Tensor | None
    ) -> None:
        """Record what the training forward of a micro-batch measured."""

    def end_step(self, stream: SampleStream, step: int) -> None:  # noqa: B027
        """Store what was recorded. Every rank calls it in every step, before the next begins."""


class KeptEntropies(EntropySource):
    """Values stored per sample: read, not computed."""

    def __init__(self, pack: SamplePack, layout: Layout) -> None:
        self._pack = pack
        self._layout = layout

    @abstractmethod
    def rows(self, samples: tuple[int, ...], *, first: int, count: int) -> NDArray[np.float32]:
        """`[rows, count]` of the samples' tokens from `first` on; NaN where there is no value.

        Args:
            samples: numbers in the pack; -1 is a row without values.
            first, count: may reach one beyond the sample's end.
        """

    def of_step(self, batches: list[MicroBatch]) -> Tensor:
        return torch.cat([self._of_batch(batch) for batch in batches])

    def _of_batch(self, batch: MicroBatch) -> Tensor:
        rows_BP = self.rows(batch.sample_ids, first=self._first, count=self._shard + 1)
        entropy_BP = torch.from_numpy(rows_BP).to(batch.ids_BS.device)
        has_value_BP = batch.is_target_token_BP & ~entropy_BP.isnan()
        return entropy_BP.masked_fill(~has_value_BP, math.inf)

    @property
    def _shard(self) -> int:
        return self._pack.seq_len // self._layout.sp_size

    @property
    def _first(self) -> int:
        return self._layout.sp_rank * self._shard


class OnlineProbe(EntropySource):
    """A forward pass without gradient over the step's own batch, unmasked."""

    def __init__(self, engine: Engine, *, measure: str) -> None:
        self._engine = engine
        self._measure = measure

    def of_step(self, batches: list[MicroBatch]) -> Tensor:
        scored_MBS = torch.stack([self._score(batch) for batch in batches])
        is_target_MBS = torch.stack([batch.is_target_BS for batch in batches])
        # rows of all micro-batches cross the shard boundary in one exchange
        return token_entropies(
            scored_MBS.flatten(0, 1),
            is_target_MBS.flatten(0, 1),
            sp_group=self._engine.sp_group,
        )

    def _score(self, batch: MicroBatch) -> Tensor:
        scored = self._engine.probe(ModelInputs.of(batch))
        scored_BS = scored.nll_BS if self._measure == "nll" else scored.entropy_BS
        # NaN never drops; the training forward shows that the batch is bad.
        return scored_BS.masked_fill(~scored_BS.isfinite(), math.inf)


class ReferenceScores(KeptEntropies):
    """Scores of the corpus by a frozen model."""

    def __init__(self, pack: SamplePack, scores: SampleScores, layout: Layout) -> None:
        super().__init__(pack, layout)
        self._scores = scores

    def rows(self, samples: tuple[int, ...], *, first: int, count: int) -> NDArray[np.float32]:
        values = np.full((len(samples), self._pack.seq_len + 1), np.nan, dtype=np.float32)
        for row, sample in enumerate(samples):
            if sample >= 0:
                values[row, :-1] = self._scores.sample(self._pack, sample)
        return values[:, first : first + count]


class CachedEntropies(KeptEntropies):
    """What the training forward itself measured when it last saw the sample.

    A token without a value of its own has that of the reference, if there is one. With
    `keeps_clean` a value measured after a dropped input never replaces one that was not, the
    reference's included.
    """

    def __init__(
        self,
        engine: Engine,
        pack: SamplePack,
        cache: EntropyCache,
        *,
        reference: ReferenceScores | None,
        measure: str,
        keeps_clean: bool,
    ) -> None:
        super().__init__(pack, engine.layout)
        self.cache = cache
        self._sp_group = engine.sp_group
        self._reference = reference
        self._measure = measure
        self._keeps_clean = keeps_clean
        self._noted: list[tuple[MicroBatch, Tensor, Tensor]] = []

    def rows(self, samples: tuple[int, ...], *, first: int, count: int) -> NDArray[np.float32]:
        values = self.cache.read(samples, first=first, count=count)
        if self._reference is not None:
            is_weaker = np.isnan(values) | (np.signbit(values) & self._keeps_clean)
            reference = self._reference.rows(samples, first=first, count=count)
            values = np.where(is_weaker & ~np.isnan(reference), reference, values)
        return np.abs(values)

    def observe(self, batch: MicroBatch, scored: Scored, input_drops_BS: Tensor | None) -> None:
        value_BS = scored.nll_BS if self._measure == "nll" else scored.entropy_BS
        if input_drops_BS is None:
            input_drops_BS = torch.zeros_like(batch.is_target_BS)
        self._noted.append((batch, value_BS.detach().float(), input_drops_BS))

    def end_step(self, stream: SampleStream, step: int) -> None:
        # one exchange for the rows of all micro-batches
        is_masked_RS = masked_contexts(
            torch.cat([drops_BS for _, _, drops_BS in self._noted]),
            torch.cat([batch.position_ids_BS for batch, _, _ in self._noted]),
            sp_group=self._sp_group,
        )
        superseded = stream.superseded(step)
        num_rows = self._noted[0][1].shape[0]
        for (batch, value_BS, _), is_masked_BS in zip(
            self._noted, is_masked_RS.split(num_rows), strict=True
        ):
            samples = tuple(
                -1 if visit in superseded else sample
                for sample, visit in zip(batch.sample_ids, batch.visits, strict=True)
            )
            self._write(samples, batch.is_target_BS, value_BS, is_masked_BS)
        self._noted = []

    def _write(
        self,
        samples: tuple[int, ...],
        is_target_BS: Tensor,
        value_BS: Tensor,
        is_masked_BS: Tensor,
    ) -> None:
        """A position's value belongs to the token after it."""
        first = self._first + 1
        old_BS = self.cache.read(samples, first=first, count=self._shard)
        new_BS = torch.where(is_masked_BS, -value_BS, value_BS).cpu().numpy()
        is_kept_BS = ~is_target_BS.cpu().numpy() | ~np.isfinite(new_BS)
        if self._keeps_clean:
            is_kept_BS |= np.signbit(new_BS) & ~np.signbit(old_BS) & ~np.isnan(old_BS)
        self.cache.write(samples, np.where(is_kept_BS, old_BS, new_BS), first=first)


class ExcessLoss(EntropySource):
    """How much worse the model predicts each token than the reference did: nll - its nll.

    Lin et al.: Rho-1: Not All Tokens Are What You Need, 2024, equation 3.
    """

    def __init__(self, online: OnlineProbe, reference: ReferenceScores) -> None:
        self._online = online
        self._reference = reference

    def of_step(self, batches: list[MicroBatch]) -> Tensor:
        nll_RP, reference_RP = self._online.of_step(batches), self._reference.of_step(batches)
        is_known_RP = nll_RP.isfinite() & reference_RP.isfinite()
        return torch.where(is_known_RP, nll_RP - reference_RP, math.inf)


def open_scores(recipe: Recipe, pack: PackIndex) -> Scores | None:
    """The scores that a recipe names, checked against its measure; None when it needs none."""
    if not recipe.uses_scores:
        return None
    name, measure = recipe.entropy.scores, recipe.measure
    if recipe.keeps_entropies and name not in pack.corpus.score_names():
        return None  # only a fallback for what the cache has not measured yet
    scores = pack.corpus.open_scores(name)
    if scores.manifest.measure != measure:
        how = command(f"data_prep score ... --measure {measure}")
        raise ValueError(
            f"entropy.scores: {scores.folder} holds {scores.manifest.measure}, this recipe needs "
            f"{measure}; make new ones with `{how}`"
        )
    return scores


def open_cache(recipe: Recipe, pack: SamplePack, *, path: Path) -> EntropyCache | None:
    """The cache of a run; None when the recipe needs none."""
    if not recipe.keeps_entropies:
        return None
    return EntropyCache(path, num_samples=pack.num_samples("train"), sample_tokens=pack.seq_len)


def choose_source(recipe: Recipe, parts: RunParts) -> EntropySource:
    """Where a run's entropies come from."""
    engine, pack = parts.engine, parts.pack
    reference = ReferenceScores(pack, parts.scores, engine.layout) if parts.scores else None
    if parts.cache is not None:
        return CachedEntropies(
            engine,
            pack,
            parts.cache,
            reference=reference,
            measure=recipe.measure,
            keeps_clean=recipe.entropy.cache_keeps == "clean",
        )
    return reference or OnlineProbe(engine, measure=recipe.measure)
