"""What a run reads: the packs and scores of its corpus, its replay corpus and its held-out sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.shards import (
    FileRecord,
    PackIndex,
    Scores,
    check_share,
    open_corpus,
    read_files,
)
from training.config.recipe import Recipe
from training.data.joined_pack import open_replay
from training.ranks.dist import Layout
from training.regularisers.entropy_source import open_scores
from training.run.heldout import heldout_packs
from training.run.teacher import open_predictions


@dataclass(frozen=True)
class RunData:
    """Opened; of their files nothing but the sizes is known yet."""

    pack: PackIndex
    scores: Scores | None
    """Of `pack`."""
    replay: PackIndex | None
    replay_scores: Scores | None
    predictions: tuple[Scores | None, Scores | None]
    """Of a teacher that is not run: of `pack` and of `replay`."""
    heldout: dict[str, PackIndex]
    """By set, where its samples are taken from; none for a recipe without evaluations."""

    @classmethod
    def open(cls, recipe: Recipe) -> RunData:
        """Everything that a recipe names.

        Raises:
            ValueError: for what is not there, or does not belong together.
        """
        pack = open_corpus(recipe.data.corpus).open_pack(recipe.data.sequence_tokens)
        replay = open_replay(recipe, pack)
        evaluates = recipe.evaluation.every_steps is not None
        return cls(
            pack=pack,
            scores=open_scores(recipe, pack),
            replay=replay,
            replay_scores=open_scores(recipe, replay) if replay else None,
            predictions=open_predictions(recipe, pack, replay),
            heldout=heldout_packs(recipe, pack) if evaluates else {},
        )

    @property
    def other_fingerprints(self) -> dict[str, str]:
        """Of packs and scores beside the run's own, by what they are for."""
        used = {f"sets.{name}": pack for name, pack in self.heldout.items()}
        found = {name: pack.fingerprint for name, pack in used.items() if pack is not self.pack}
        if self.replay is not None:
            found["replay"] = self.replay.fingerprint
        if self.replay_scores is not None:
            found["replay_scores"] = self.replay_scores.fingerprint
        for name, stored in zip(
            ("teacher_scores", "replay_teacher_scores"), self.predictions, strict=True
        ):
            if stored is not None:
                found[name] = stored.fingerprint
        return found

    def files(self, recipe: Recipe) -> list[tuple[Path, FileRecord]]:
        """Every file that the run may read, once, each with its folder."""
        found = read_files(self.pack, self.scores)
        if self.replay is not None:
            found += read_files(self.replay, self.replay_scores, splits=("train",))
        for stored in filter(None, self.predictions):
            found += stored.top_k_files(("train",))
        for name, pack in self.heldout.items():
            if pack is not self.pack:
                found += read_files(pack, splits=(recipe.evaluation.named_sets[name].split,))
        return list({folder / file.name: (folder, file) for folder, file in found}.values())

    def check(self, recipe: Recipe, layout: Layout) -> None:
        """Compare every byte of the files with the manifests, each rank a share.

        Raises:
            ValueError: for the first file that does not match.
        """
        check_share(self.files(recipe), rank=layout.rank, world_size=layout.world_size)
