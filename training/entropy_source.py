"""Where the entropies of a step's tokens come from: the model itself, or scores beside the corpus.

B rows, S tokens of this rank's sequence shard, R rows of all micro-batches.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data_prep.shards import PackIndex, Scores
from training.config import Recipe
from training.data import MicroBatch
from training.dist import Layout
from training.engine import Engine
from training.entrodrop.entropy import token_entropies


class EntropySource(Protocol):
    """Gives the entropies of a step's tokens before its forward pass."""

    def of_step(self, batches: list[MicroBatch]) -> Tensor:
        """fp32 `[R, S + 1]`: each shard's tokens and the one behind it, in nats.

        +inf at tokens that are no target or have no score; those never drop.
        """


class Online:
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
        nll_BS, entropy_BS = self._engine.probe(batch)
        return nll_BS if self._measure == "nll" else entropy_BS


class Reference:
    """Scores that a frozen model left beside the corpus: read, not computed."""

    def __init__(self, pack: PackIndex, scores: Scores, layout: Layout) -> None:
        self._pack = pack
        self._scores = scores
        self._layout = layout

    def of_step(self, batches: list[MicroBatch]) -> Tensor:
        return torch.cat([self._of_batch(batch) for batch in batches])

    def _of_batch(self, batch: MicroBatch) -> Tensor:
        shard = self._pack.seq_len // self._layout.sp_size
        start = self._layout.sp_rank * shard
        rows = [self._row(sample)[start : start + shard + 1] for sample in batch.sample_ids]
        entropy_BS1 = torch.from_numpy(np.stack(rows)).to(batch.ids_BS.device)
        has_score_BS1 = batch.is_target_token_BS1 & ~entropy_BS1.isnan()
        return entropy_BS1.masked_fill(~has_score_BS1, math.inf)

    def _row(self, sample: int) -> np.ndarray:
        """Of the sample's tokens and one that is not there, fp32 `[T + 1]`."""
        row = np.full(self._pack.seq_len + 1, np.nan, dtype=np.float32)
        if sample >= 0:
            row[:-1] = self._scores.sample(self._pack, sample)
        return row


class ExcessLoss:
    """How much worse the model predicts each token than the reference did: nll - its nll.

    Lin et al.: Rho-1: Not All Tokens Are What You Need, 2024, equation 3.
    """

    def __init__(self, online: Online, reference: Reference) -> None:
        self._online = online
        self._reference = reference

    def of_step(self, batches: list[MicroBatch]) -> Tensor:
        nll_RS1, reference_RS1 = self._online.of_step(batches), self._reference.of_step(batches)
        is_known_RS1 = nll_RS1.isfinite() & reference_RS1.isfinite()
        return torch.where(is_known_RS1, nll_RS1 - reference_RS1, math.inf)


def open_scores(recipe: Recipe, pack: PackIndex) -> Scores | None:
    """The scores that a recipe names, checked against its measure; None when it needs none."""
    uses_reference = recipe.regulariser == "entrodrop" and recipe.entropy.source == "reference"
    if not uses_reference and recipe.regulariser != "rho1":
        return None
    measure = "nll" if recipe.regulariser == "rho1" else recipe.entropy.measure
    scores = pack.corpus.open_scores(recipe.entropy.scores)
    if scores.manifest.measure != measure:
        raise ValueError(
            f"entropy.scores: {scores.folder} holds {scores.manifest.measure}, this recipe needs "
            f"{measure}; make others with `python -m data_prep score ... --measure {measure}`"
        )
    return scores


def choose_source(
    recipe: Recipe, engine: Engine, pack: PackIndex, scores: Scores | None
) -> EntropySource:
    """Where a run's entropies come from."""
    if scores is None:
        return Online(engine, measure=recipe.entropy.measure)
    reference = Reference(pack, scores, engine.layout)
    if recipe.regulariser == "rho1":
        return ExcessLoss(Online(engine, measure="nll"), reference)
    return reference
