"""What a run starts from: matching recipe, corpus, model and layout, or one error on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from data_prep.shards import Mixture, PackIndex, Scores, check_contents, open_corpus
from training.checkpoints.model_folder import find_base, make_model_folder
from training.config.recipe import Recipe
from training.data.stream import SampleStream
from training.model.checks import warn_of_positions
from training.model.ds_config import join_ds_config, training_dtype
from training.ranks.dist import Layout, raise_together
from training.regularisers.entropy_source import open_scores
from training.regularisers.replacement import check_mask_token
from training.run.fit import find_misfit, fitting_config
from training.run.heldout import check_other_contents, heldout_streams
from training.run.plan import Plan, choose_mixture, derive_plan


@dataclass(frozen=True)
class Start:
    """Everything that was opened and derived before weights exist."""

    pack: PackIndex
    mixture: Mixture
    scores: Scores | None
    plan: Plan
    heldout: dict[str, SampleStream]
    """By set; none for a recipe without evaluations."""
    dtype: torch.dtype
    model_config: PretrainedConfig
    model_files: dict[str, bytes]
    """What the run keeps of its model, on rank 0: contents by name."""


def check_start(recipe: Recipe, layout: Layout) -> Start:
    """Open and compare what a run needs; weights are not loaded, and there is no communication.

    Raises:
        ValueError: for the first thing that does not work.
    """
    corpus = open_corpus(recipe.data.corpus)
    pack = corpus.open_pack(recipe.data.sequence_tokens)
    mixture = choose_mixture(recipe, pack)
    scores = open_scores(recipe, pack)
    plan = derive_plan(recipe, pack, mixture, layout)
    evaluates = recipe.evaluation.every_steps is not None
    heldout = heldout_streams(recipe, pack, layout) if evaluates else {}
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
    if recipe.data.verify == "hashes":
        check_contents(pack, scores=scores, rank=layout.rank, world_size=layout.world_size)
        check_other_contents(pack, heldout, layout)
    return Start(pack, mixture, scores, plan, heldout, dtype, model_config, model_files)


def check_start_together(recipe: Recipe, layout: Layout) -> Start:
    """`check_start` on every rank, each reading a share of the corpus.

    Raises:
        ValueError: the same on every rank, also when only one sees what is wrong.
    """
    start, error = None, None
    try:
        start = check_start(recipe, layout)
    except (ValueError, OSError) as caught:
        error = str(caught)
    raise_together(error)
    assert start is not None
    return start
