"""What a run starts from: matching recipe, corpus, model and layout, or one error on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from transformers import PretrainedConfig

from data_prep.shards import Mixture, PackIndex, Scores, check_contents, open_corpus
from training.checkpoints.model_folder import find_base, make_model_folder
from training.config.recipe import Recipe
from training.data.joined_pack import open_replay
from training.data.stream import SampleStream
from training.model.checks import warn_of_positions
from training.model.ds_config import join_ds_config, training_dtype
from training.ranks.dist import Layout, together
from training.regularisers.entropy_source import open_scores
from training.regularisers.replacement import check_mask_token
from training.run.fit import find_misfit, fitting_config
from training.run.heldout import heldout_packs, heldout_streams
from training.run.plan import Plan, choose_mixture, derive_plan, refuse_small_replay


@dataclass(frozen=True)
class Start:
    """Everything that was opened and derived before weights exist."""

    pack: PackIndex
    replay: PackIndex | None
    mixture: Mixture
    """Of both."""
    scores: Scores | None
    """Of `pack`."""
    replay_scores: Scores | None
    plan: Plan
    heldout_packs: dict[str, PackIndex]
    """By set, where its samples are taken from; none for a recipe without evaluations."""
    heldout: dict[str, SampleStream]
    """By set, its samples."""
    dtype: torch.dtype
    model_config: PretrainedConfig
    model_files: dict[str, bytes]
    """What the run keeps of its model, on rank 0: contents by name."""

    @property
    def other_fingerprints(self) -> dict[str, str]:
        """Of packs and scores of other corpora than the run's own, by what they are for."""
        used = {f"sets.{name}": pack for name, pack in self.heldout_packs.items()}
        found = {name: pack.fingerprint for name, pack in used.items() if pack is not self.pack}
        if self.replay is not None:
            found["replay"] = self.replay.fingerprint
        if self.replay_scores is not None:
            found["replay_scores"] = self.replay_scores.fingerprint
        return found


def check_start(recipe: Recipe, layout: Layout) -> Start:
    """Open and compare what a run needs; weights are not loaded, and there is no communication.

    Raises:
        ValueError: for the first thing that does not work.
    """
    corpus = open_corpus(recipe.data.corpus)
    pack = corpus.open_pack(recipe.data.sequence_tokens)
    replay = open_replay(recipe, pack)
    mixture = choose_mixture(recipe, pack, replay)
    scores = open_scores(recipe, pack)
    replay_scores = open_scores(recipe, replay) if replay else None
    plan = derive_plan(recipe, pack, mixture, layout)
    refuse_small_replay(recipe, mixture, plan)
    evaluates = recipe.evaluation.every_steps is not None
    heldout_of = heldout_packs(recipe, pack) if evaluates else {}
    heldout = heldout_streams(recipe, heldout_of, layout)
    has_gpu = layout.device.type == "cuda"
    join_ds_config(recipe, num_micro_steps=plan.micro_steps, has_gpu=has_gpu)
    dtype = training_dtype(recipe.deepspeed)
    model_config = fitting_config(recipe, corpus, sp_size=layout.sp_size)
    model_files: dict[str, bytes] = {}
    if layout.is_main:
        warn_of_positions(model_config, sequence_tokens=recipe.data.sequence_tokens)
        if mistake := find_misfit(recipe, corpus, model_config):
            raise ValueError(mistake)
        model_files = make_model_folder(
            recipe.model, model_config, corpus, base=find_base(recipe.model)
        )
    check_mask_token(recipe.dropout, vocab_size=model_config.get_text_config().vocab_size)
    start = Start(
        pack=pack,
        replay=replay,
        mixture=mixture,
        scores=scores,
        replay_scores=replay_scores,
        plan=plan,
        heldout_packs=heldout_of,
        heldout=heldout,
        dtype=dtype,
        model_config=model_config,
        model_files=model_files,
    )
    if recipe.data.verify == "hashes":
        _check_contents(start, layout)
    return start


def _check_contents(start: Start, layout: Layout) -> None:
    """Compare every byte that the run may read with the manifests, each rank a share."""
    check = partial(check_contents, rank=layout.rank, world_size=layout.world_size)
    check(start.pack, start.scores)
    if start.replay is not None:
        check(start.replay, start.replay_scores, splits=("train",))
    # a folder that several sets share is opened for each of them
    others = {
        (pack.folder, start.heldout[name].split): pack
        for name, pack in start.heldout_packs.items()
        if pack is not start.pack
    }
    for (_, split), pack in others.items():
        check(pack, splits=(split,))


def check_start_together(recipe: Recipe, layout: Layout) -> Start:
    """`check_start` on every rank, each reading a share of the corpus.

    Raises:
        ValueError: the same on every rank, also when only one sees what is wrong.
    """
    return together(lambda: check_start(recipe, layout))
