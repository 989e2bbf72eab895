"""Which tokens of some samples a recipe would drop in an epoch, by scores of the corpus."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.durable import atomic_write
from data_prep.shards import Mixture, PackIndex, open_corpus
from training.config.recipe import Recipe
from training.data.joined_pack import join, join_scores, open_replay
from training.data.sample_order import SampleOrder
from training.data.stream import SampleStream
from training.ranks.dist import Layout
from training.regularisers.base import StepDropout
from training.regularisers.drop_sets import drop_low_of_step, gamma_at
from training.regularisers.entropy_source import ReferenceScores
from training.run.plan import Plan, choose_mixture, derive_plan


def write_preview(
    recipe: Recipe, *, epoch: int, samples: list[int], scores: str, out: Path
) -> Path:
    """Write the drops as JSON, which `python -m data_prep inspect --drops` shows.

    The set is that of the run, given these scores as entropies: the same batch, quantile, seed
    and draw. The drop rate is taken at the share of samples before the step, which differs from
    the run's share of tokens only by padding.

    Args:
        epoch: from 0.
        samples: numbers in the pack.
        scores: name of scores of the corpus.

    Raises:
        ValueError: for an epoch, sample or scores that do not exist, and for recipes that drop by
            other rules than the quantile of a step.
    """
    # A step is the same set of samples however it is split into passes.
    recipe = replace(recipe, train=replace(recipe.train, micro_batch_samples=1))
    corpus = open_corpus(recipe.data.corpus)
    pack = corpus.open_pack(recipe.data.sequence_tokens)
    replay = open_replay(recipe, pack)
    mixture = choose_mixture(recipe, pack, replay)
    layout = Layout(rank=0, world_size=1, sp_size=1, device=torch.device("cpu"))
    plan = derive_plan(recipe, pack, mixture, layout)
    places = _places(recipe, pack, mixture, plan, epoch=epoch, samples=samples)
    everything = join(pack, replay)
    stream = SampleStream(
        pack=everything,
        split="train",
        layout=layout,
        total_samples=plan.total_samples,
        samples_per_step=plan.samples_per_step,
        micro_batch_samples=1,
        order=SampleOrder(mixture, seed=recipe.seed),
    )
    kept = corpus.open_scores(scores)
    _refuse_other_methods(recipe, measure=kept.manifest.measure)
    of_replay = replay.corpus.open_scores(scores) if replay else None
    joined = join_scores(kept, replay, of_replay)
    assert joined is not None
    source = ReferenceScores(everything, joined, layout)
    shown = []
    for sample, number in sorted(places.items()):
        step, row = divmod(number, plan.samples_per_step)
        batches = stream.step(step)
        gamma = gamma_at(recipe.dropout, step * plan.samples_per_step / plan.total_samples)
        drops = drop_low_of_step(
            source.of_step(batches),
            batches,
            recipe.dropout,
            seed=recipe.seed,
            gamma=gamma,
            num_targets=sum(batch.num_targets for batch in batches),
        )
        shown.append(_describe(drops, sample=sample, step=step, row=row))
    content = {
        "pack": pack.fingerprint,
        "split": "train",
        "seq_len": pack.seq_len,
        "epoch": epoch,
        "scores": scores,
        "where": recipe.dropout.where,
        "quantile": recipe.dropout.quantile,
        "samples": shown,
    }
    atomic_write(out, json.dumps(content, indent=1) + "\n")
    return out


def _refuse_other_methods(recipe: Recipe, *, measure: str) -> None:
    """What is shown is the low set of a step: other ways to drop would be shown wrongly."""
    entropy, chosen = recipe.entropy, recipe.regularisers
    for key, value, shown in (
        ("regulariser", "entrodrop" if "entrodrop" in chosen else "+".join(chosen), "entrodrop"),
        ("entropy.scope", entropy.scope, "batch"),
        ("entropy.threshold", entropy.threshold, "step"),
        ("entropy.measure", entropy.measure, measure),
        ("dropout.side", recipe.dropout.side, "low"),
        ("dropout.guidance", recipe.dropout.guidance, 1.0),
        ("dropout.softness", recipe.dropout.softness or "null", "null"),
        ("dropout.sample_rates", recipe.dropout.sample_rates, "equal"),
    ):
        if value != shown:
            of = "these scores are" if key == "entropy.measure" else "preview shows drops of"
            raise ValueError(f"{key} is {value}; {of} {shown}")


def _places(
    recipe: Recipe,
    pack: PackIndex,
    mixture: Mixture,
    plan: Plan,
    *,
    epoch: int,
    samples: list[int],
) -> dict[int, int]:
    """Where in the run each sample comes first in the epoch."""
    last_epoch = (plan.total_samples - 1) // plan.samples_per_epoch
    if not 0 <= epoch <= last_epoch:
        raise ValueError(f"--epoch {epoch}: the run has epochs 0 to {last_epoch}")
    for sample in samples:
        if not 0 <= sample < pack.num_samples("train"):
            last = pack.num_samples("train") - 1
            raise ValueError(f"--samples {sample}: the pack has samples 0 to {last}")
    order = SampleOrder(mixture, seed=recipe.seed)
    wanted = set(samples)
    places: dict[int, int] = {}
    first = epoch * plan.samples_per_epoch
    for number in range(first, min(first + plan.samples_per_epoch, plan.total_samples)):
        sample = order.sample_at(number)[0]
        if sample in wanted:
            places.setdefault(sample, number)
            if len(places) == len(wanted):
                break
    if missing := sorted(wanted - set(places)):
        raise ValueError(f"--samples {missing[0]}: epoch {epoch} of the run does not reach it")
    return places


def _describe(drops: StepDropout, *, sample: int, step: int, row: int) -> dict[str, Any]:
    dropped_RP = torch.cat(drops.dropped_BP)
    return {
        "sample": sample,
        "step": step,
        "gamma": drops.gamma,
        "threshold_nats": drops.threshold_nats,
        "dropped": dropped_RP[row, :-1].nonzero().flatten().tolist(),
    }
