"""The held-out sets of a run: which samples they are, and an evaluation of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.hints import did_you_mean
from data_prep.shards import PackIndex, open_corpus
from training.config.heldout import HeldoutData
from training.config.recipe import Recipe
from training.data.other_corpora import open_pack_like
from training.data.stream import IGNORE, SampleStream, next_token_targets
from training.metrics.heldout_rows import losses_by_set
from training.model.engine import Engine
from training.model.shadow import AveragedWeights
from training.ranks.dist import Layout, broadcast_from_rank0
from training.run.best import evaluation_row
from training.run.continuations import Continuations
from training.run.evaluation import Bands, bands_of_stream, evaluate, freeze_bands

_SPLITS = {"val": "validation", "train": "train"}


def heldout_packs(recipe: Recipe, pack: PackIndex) -> dict[str, PackIndex]:
    """By set, the pack that its samples are taken from.

    Raises:
        ValueError: for a corpus with another tokenizer, or not packed for the run's sample length.
    """
    return {
        name: pack
        if data.corpus is None
        else open_pack_like(pack, data.corpus, key=f"{set_key(recipe, name)}.corpus")
        for name, data in recipe.evaluation.named_sets.items()
    }


def heldout_streams(
    recipe: Recipe, packs: Mapping[str, PackIndex], layout: Layout
) -> dict[str, SampleStream]:
    """By set, its samples in the order of their pack, one micro-step at a time.

    Raises:
        ValueError: for a set that is empty or has only masked tokens.
    """
    sets = recipe.evaluation.named_sets
    return {
        name: _stream(name, sets[name], recipe=recipe, pack=pack, layout=layout)
        for name, pack in packs.items()
    }


def set_key(recipe: Recipe, name: str) -> str:
    """Where the recipe says what is in a set, for messages."""
    return "evaluation" if recipe.evaluation.sets is None else f"evaluation.sets.{name}"


def _stream(
    name: str, data: HeldoutData, *, recipe: Recipe, pack: PackIndex, layout: Layout
) -> SampleStream:
    key = set_key(recipe, name)
    corpus_key = "data.corpus" if data.corpus is None else f"{key}.corpus"
    samples, num_targets = range(pack.num_samples(data.split)), pack.num_targets(data.split)
    if data.domain is not None:
        samples, num_targets = _domain(pack, data, key=f"{key}.domain")
    if not samples or not num_targets:
        found = "is empty" if not samples else "has no target tokens"
        part = f"{_SPLITS[data.split]} split"
        part = part if data.domain is None else f"domain {data.domain} of the {part}"
        raise ValueError(
            f"{corpus_key} {pack.corpus.folder}: the {part} {found}; build it with a "
            "larger --val-frac, or set evaluation.every_steps: null to train without it"
        )
    most = data.max_samples or recipe.evaluation.max_samples
    taken = samples[:most]
    if len(taken) < len(samples) and not any(_has_target(pack, i, data.split) for i in taken):
        owner = "evaluation" if data.max_samples is None else key
        raise ValueError(
            f"{owner}.max_samples {most}: the first {most} of {len(samples)} "
            f"{_SPLITS[data.split]} samples have no target tokens; take more, or null for all"
        )
    return SampleStream(
        pack=pack,
        split=data.split,
        layout=layout,
        total_samples=len(taken),
        samples_per_step=recipe.train.micro_batch_samples * layout.dp_size,
        micro_batch_samples=recipe.train.micro_batch_samples,
        first_sample=samples.start,
    )


def _has_target(pack: PackIndex, sample: int, split: Literal["train", "val"]) -> bool:
    return bool((next_token_targets(pack.sample(sample, split)) != IGNORE).any())


def domains_left_out(pack: PackIndex, data: HeldoutData, *, num_samples: int) -> list[str]:
    """Domains with held-out samples, of which none is among those of a set of all domains."""
    if data.domain is not None:
        return []
    domains = pack.domain_samples(data.split)
    return [name for name, own in domains.items() if own and own.start >= num_samples]


def _domain(pack: PackIndex, data: HeldoutData, *, key: str) -> tuple[range, int]:
    """Its samples and how many targets they have."""
    domains = pack.domain_samples(data.split)
    if data.domain not in domains:
        hint = did_you_mean(data.domain, domains, otherwise=f"there are {', '.join(domains)}")
        raise ValueError(f"{key}: no domain {data.domain!r} in {pack.corpus.folder}{hint}")
    return domains[data.domain], pack.num_targets(data.split, data.domain)


def bands_folder(run_dir: Path, recipe: Recipe, name: str) -> Path:
    """Where a run keeps the frozen bands of a set."""
    is_only = recipe.evaluation.sets is None
    return run_dir / "heldout_bands" if is_only else run_dir / "heldout_sets" / name


@dataclass
class Heldout:
    """The held-out sets of a run, with their bands and their losses before the first step."""

    engine: Engine
    recipe: Recipe
    streams: Mapping[str, SampleStream]
    first_losses: dict[str, float]
    """By set, in nats per token; empty before the first evaluation, and for a set that was not
    evaluated then."""
    bands: dict[str, Bands] = field(default_factory=dict)
    average: AveragedWeights | None = None
    """Evaluated beside the weights."""
    continuations: Continuations | None = None

    @classmethod
    def open(
        cls,
        engine: Engine,
        recipe: Recipe,
        streams: Mapping[str, SampleStream],
        *,
        step: int,
        first_row: Mapping[str, Any] | None,
        average: AveragedWeights | None = None,
    ) -> Heldout:
        """Freeze the bands of a new run, or read those of an old one.

        A set that was not evaluated before the first step has no bands, and gets none midway; nor
        has one of other samples than they were made of, which a resume may accept.

        Args:
            step: from which the run continues.
            first_row: its evaluation before the first step, if it had one.
        """
        found = cls(
            engine,
            recipe,
            streams,
            losses_by_set(first_row or {}),
            average=average,
            continuations=Continuations.open(recipe, open_corpus(recipe.data.corpus)),
        )
        for name, stream in streams.items():
            if step == 0:
                found.bands[name] = freeze_bands(
                    engine,
                    stream,
                    num_bands=recipe.evaluation.num_bands,
                    folder=bands_folder(Path(recipe.run_dir), recipe, name),
                )
            elif bands := found._kept_bands(name):
                found.bands[name] = bands
        return found

    def _kept_bands(self, name: str) -> Bands | None:
        folder = bands_folder(Path(self.recipe.run_dir), self.recipe, name)
        # the rows may be lost, as may the folder: either says that there are bands
        if not broadcast_from_rank0(folder.exists() or name in self.first_losses):
            return None
        return bands_of_stream(folder, self.streams[name])

    def evaluate(self, *, step: int) -> dict[str, Any]:
        """The row of an evaluation; every rank calls it.

        Args:
            step: optimizer steps done.
        """
        results = {
            name: evaluate(self.engine, stream, self.bands.get(name))
            for name, stream in self.streams.items()
        }
        if step == 0:
            self.first_losses = {name: result["loss"] for name, result in results.items()}
        for name, result in results.items():
            if name in self.first_losses:
                result["forgetting_nats"] = result["loss"] - self.first_losses[name]
        if self.average is not None:
            with self.average.in_use():
                for name, stream in self.streams.items():
                    averaged = evaluate(self.engine, stream, None)
                    results[name]["ema_loss"] = averaged["loss"]
                    results[name]["seconds"] += averaged["seconds"]
        row = evaluation_row(results, self.recipe.evaluation)
        if self.continuations is not None:
            row["continuations"] = self.continuations.rows(self.engine)
        return row
