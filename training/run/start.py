"""What a run starts from: matching recipe, corpus, model and layout, or one error on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from data_prep.shards import Mixture, open_corpus
from training.checkpoints.model_folder import find_base, make_model_folder
from training.config.layout import check_second_partition, second_partition
from training.config.recipe import Recipe
from training.data.stream import SampleStream
from training.metrics.trackers import refuse_missing_clients
from training.model.adapter import require_peft
from training.model.checks import warn_of_positions
from training.model.ds_config import join_ds_config, training_dtype
from training.model.flash_choice import check_attention
from training.model.fused_check import check_fused
from training.model.multimodal import tell_of_other_parts
from training.ranks.dist import Layout, together
from training.regularisers.replacement import check_mask_token
from training.run.continuations import Continuations
from training.run.fit import find_misfit, find_no_part, find_other_tokenizer, fitting_config
from training.run.heldout import heldout_streams
from training.run.plan import Plan, choose_mixture, derive_plan, refuse_small_replay
from training.run.run_data import RunData


@dataclass(frozen=True)
class Start:
    """Everything that was opened and derived before weights exist."""

    data: RunData
    mixture: Mixture
    """Of corpus and replay corpus."""
    plan: Plan
    heldout: dict[str, SampleStream]
    """By set, its samples."""
    dtype: torch.dtype
    model_config: PretrainedConfig
    model_files: dict[str, bytes]
    """What the run keeps of its model, on rank 0: contents by name."""


def check_start(recipe: Recipe, layout: Layout) -> Start:
    """Open and compare what a run needs; weights are not loaded, and there is no communication.

    Raises:
        ValueError: for the first thing that does not work.
    """
    refuse_missing_clients(recipe.trackers)
    if recipe.adapter is not None:
        require_peft()
    if layout.is_main:
        # before other corpora are compared with it: they may be the ones that are right
        mistake = find_other_tokenizer(recipe.model, open_corpus(recipe.data.corpus))
        if mistake:
            raise ValueError(mistake)
    data = RunData.open(recipe)
    mixture = choose_mixture(recipe, data.pack, data.replay)
    plan = derive_plan(recipe, data.pack, mixture, layout)
    refuse_small_replay(recipe, mixture, plan)
    heldout = heldout_streams(recipe, data.heldout, layout)
    Continuations.open(recipe, data.pack.corpus)  # what it refuses
    has_gpu = layout.device.type == "cuda"
    num_passes = plan.micro_steps * recipe.num_passes
    ds_config = join_ds_config(recipe, num_micro_steps=num_passes, has_gpu=has_gpu)
    found = ds_config["zero_optimization"].get("zero_hpz_partition_size", 1)
    num_sharing = second_partition(found, deepspeed=recipe.deepspeed)
    check_second_partition(num_sharing, num_ranks=layout.world_size, deepspeed=recipe.deepspeed)
    dtype = training_dtype(recipe.deepspeed)
    corpus = data.pack.corpus
    model_config = fitting_config(recipe, corpus, sp_size=layout.sp_size)
    check_attention(recipe.model, device=layout.device)
    check_fused(recipe.model, model_config, device=layout.device)
    model_files: dict[str, bytes] = {}
    if layout.is_main:
        tell_of_other_parts(recipe.model)
        warn_of_positions(model_config, sequence_tokens=recipe.data.sequence_tokens)
        mistake = find_misfit(recipe, corpus, model_config) or find_no_part(recipe, model_config)
        if mistake:
            raise ValueError(mistake)
        model_files = make_model_folder(
            recipe.model, model_config, corpus, base=find_base(recipe.model)
        )
    check_mask_token(recipe.dropout, vocab_size=model_config.get_text_config().vocab_size)
    if recipe.data.verify == "hashes":
        data.check(recipe, layout)
    return Start(
        data=data,
        mixture=mixture,
        plan=plan,
        heldout=heldout,
        dtype=dtype,
        model_config=model_config,
        model_files=model_files,
    )


def check_start_together(recipe: Recipe, layout: Layout) -> Start:
    """`check_start` on every rank, each reading a share of the corpus.

    Raises:
        ValueError: the same on every rank, also when only one sees what is wrong.
    """
    return together(lambda: check_start(recipe, layout))
