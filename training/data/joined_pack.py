"""What a run trains on: the samples of its corpus, and after them those of its replay corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from data_prep.shards import PackedSample, PackIndex, Scores, TopK, no_top_k
from training.config.recipe import Recipe
from training.data.other_corpora import open_pack_like

Split = Literal["train", "val"]


class SamplePack(Protocol):
    """Samples of one length by their number: a `PackIndex`, or several as one."""

    @property
    def seq_len(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def num_samples(self, split: Split = "train") -> int: ...
    def sample(self, i: int, split: Split = "train") -> PackedSample: ...
    def pieces(self, i: int, split: Split = "train") -> np.ndarray: ...


class SampleScores(Protocol):
    """Scores of their tokens: `Scores`, or those of several corpora as one."""

    def sample(self, index: Any, i: int, split: Split = "train") -> np.ndarray: ...


class SampleTopK(Protocol):
    """The likeliest tokens at their positions: `Scores` with them, or those of several corpora."""

    def top_k(
        self, index: Any, i: int, split: Split = "train", *, first: int = 0, count: int
    ) -> TopK: ...


@dataclass(frozen=True)
class JoinedPack:
    """Two packs as one: the samples of the second are numbered after those of the first."""

    first: PackIndex
    second: PackIndex

    @property
    def seq_len(self) -> int:
        """Of both."""
        return self.first.seq_len

    @property
    def fingerprint(self) -> str:
        """Of both."""
        return f"{self.first.fingerprint}+{self.second.fingerprint}"

    def num_samples(self, split: Split = "train") -> int:
        return self.first.num_samples(split) + self.second.num_samples(split)

    def sample(self, i: int, split: Split = "train") -> PackedSample:
        pack, place = self.locate(i, split)
        return pack.sample(place, split)

    def pieces(self, i: int, split: Split = "train") -> np.ndarray:
        """Of sample `i`, `[n, 3]`; documents are numbered as in its own corpus."""
        pack, place = self.locate(i, split)
        return pack.pieces(place, split)

    def locate(self, i: int, split: Split = "train") -> tuple[PackIndex, int]:
        """The pack of sample `i`, and its number there."""
        num_first = self.first.num_samples(split)
        return (self.first, i) if i < num_first else (self.second, i - num_first)


@dataclass(frozen=True)
class JoinedScores:
    """Scores of both corpora of a `JoinedPack`."""

    first: Scores | None
    second: Scores | None
    """Either is None where its corpus has none and the recipe can do without."""

    def sample(self, index: JoinedPack, i: int, split: Split = "train") -> np.ndarray:
        """fp32 `[T]`; NaN for a token without a score."""
        scores, pack, place = self._locate(index, i, split)
        if scores is None:
            return np.full(index.seq_len, np.nan, dtype=np.float32)
        return scores.sample(pack, place, split)

    def top_k(
        self, index: JoinedPack, i: int, split: Split = "train", *, first: int = 0, count: int
    ) -> TopK:
        """As `Scores.top_k`; one of the two has them, and the same K where both have."""
        scores, pack, place = self._locate(index, i, split)
        if scores is None:
            (k,) = {each.num_kept for each in (self.first, self.second) if each}
            return no_top_k(count, k)
        return scores.top_k(pack, place, split, first=first, count=count)

    def _locate(
        self, index: JoinedPack, i: int, split: Split
    ) -> tuple[Scores | None, PackIndex, int]:
        pack, place = index.locate(i, split)
        return (self.first if pack is index.first else self.second), pack, place


def open_replay(recipe: Recipe, pack: PackIndex) -> PackIndex | None:
    """The pack that a recipe replays, if any.

    Raises:
        ValueError: when it has another tokenizer, is not packed for that length, or is empty.
    """
    if recipe.replay is None:
        return None
    replay = open_pack_like(pack, recipe.replay.corpus, key="replay.corpus")
    if replay.num_targets("train") == 0:
        raise ValueError(
            f"replay.corpus {recipe.replay.corpus}: the train split has nothing to train on"
        )
    return replay


def join(pack: PackIndex, replay: PackIndex | None) -> SamplePack:
    """What a run trains on."""
    return pack if replay is None else JoinedPack(pack, replay)


def join_scores(
    scores: Scores | None, replay: PackIndex | None, replay_scores: Scores | None
) -> SampleScores | None:
    """Of what a run trains on; None where its own corpus has none."""
    return scores if scores is None or replay is None else JoinedScores(scores, replay_scores)
