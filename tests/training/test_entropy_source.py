"""What a cache keeps of what training measured, and steps in which nothing can drop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.packing.mixture import DomainShare
from data_prep.shards import PackedSample
from tests.distributed import run_ranks
from tests.grids import is_taken
from tests.training.layouts import (
    SEQUENCE_TOKENS,
    RandomScores,
    UnevenPack,
    make_regulariser,
    tiny_recipe,
    whole_epoch,
    whole_epochs,
)
from tests.training.test_layouts import make_engine
from training.config.recipe import Recipe
from training.data.sample_order import SampleOrder
from training.data.stream import SampleStream
from training.model.inputs import Scored
from training.ranks.dist import Layout, init_layout
from training.regularisers.base import RunParts
from training.regularisers.entropy_cache import EntropyCache
from training.regularisers.entropy_source import CachedEntropies, EntropySource, choose_source
from training.run.step import train_step

ALONE = Layout(rank=0, world_size=1, sp_size=1, device=torch.device("cpu"))
NUM_SAMPLES = 4


def make_stream(order: SampleOrder | None = None, samples_per_step: int = 4) -> SampleStream:
    return SampleStream(
        pack=UnevenPack(num=NUM_SAMPLES),
        split="train",
        layout=ALONE,
        total_samples=100,
        samples_per_step=samples_per_step,
        micro_batch_samples=samples_per_step,
        order=order,
    )


def make_cached(folder: Path, *, keeps: str, with_reference: bool = False) -> CachedEntropies:
    cache = EntropyCache(folder / "c", num_samples=NUM_SAMPLES, sample_tokens=SEQUENCE_TOKENS)
    cache.clear()
    engine: Any = SimpleNamespace(layout=ALONE, sp_group=None)
    recipe = tiny_recipe(entropy__source="cache", entropy__cache_keeps=keeps)
    scores: Any = RandomScores() if with_reference else None
    source = source_of(recipe, engine, scores=scores, cache=cache)
    assert isinstance(source, CachedEntropies)
    return source


def source_of(recipe: Recipe, engine: Any, **entropies: Any) -> EntropySource:
    pack: Any = UnevenPack(num=NUM_SAMPLES)
    return choose_source(recipe, RunParts(engine, pack, whole_epoch(NUM_SAMPLES), **entropies))


def observe(
    source: CachedEntropies, stream: SampleStream, value: float, dropped: int | None
) -> None:
    """A step in which every position measures `value`, behind a drop in each row or none."""
    (batch,) = stream.step(0)
    drops = torch.zeros_like(batch.is_target_BS)
    if dropped is not None:
        drops[:, dropped] = True
    values = torch.full(batch.ids_BS.shape, value)
    source.observe(batch, Scored(torch.full_like(values, 99.0), values), drops)
    source.end_step(stream, 0)


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("keeps", ["clean", "latest"])
def test_which_of_several_measurements_is_kept(tmp_path, keeps, with_reference):
    stream = make_stream()
    (batch,) = stream.step(0)
    source = make_cached(tmp_path, keeps=keeps, with_reference=with_reference)
    own = batch.is_target_token_BP
    reference_BP = torch.full(own.shape, torch.inf)
    if with_reference:
        engine: Any = SimpleNamespace(layout=ALONE)
        recipe = tiny_recipe(entropy__source="reference")
        reference_BP = source_of(recipe, engine, scores=RandomScores()).of_step([batch])
    assert torch.equal(source.of_step([batch]), reference_BP)  # nothing measured yet

    # Position 3 is dropped: what its document predicts from there on rests on it.
    start = 3 - batch.position_ids_BS[:, 3:4]
    place = torch.arange(SEQUENCE_TOKENS)
    is_masked = (place >= 3) & (place - batch.position_ids_BS == start)
    is_masked_token = torch.nn.functional.pad(is_masked, (1, 0)) & own
    assert 4 < int(is_masked_token.sum()) < int(own.sum()) - 20
    none = torch.full(own.shape, torch.inf)
    first = torch.where(own, torch.full(own.shape, 2.0), none)

    observe(source, stream, 2.0, dropped=3)
    if keeps == "clean":  # a masked value stands in only where there is no other
        has_reference = is_masked_token & reference_BP.isfinite()
        first = torch.where(has_reference, reference_BP, first)
    assert torch.equal(source.of_step([batch]), first)

    observe(source, stream, 3.0, dropped=None)
    assert torch.equal(source.of_step([batch]), torch.where(own, 3.0, none))

    observe(source, stream, 4.0, dropped=3)
    later = torch.where(own, 4.0, none)
    if keeps == "clean":
        later = torch.where(is_masked_token, torch.where(own, 3.0, none), later)
    assert torch.equal(source.of_step([batch]), later)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_kept(tmp_path, value):
    stream = make_stream()
    source = make_cached(tmp_path, keeps="latest")
    observe(source, stream, 1.0, dropped=None)
    before = source.cache.path.read_bytes()
    observe(source, stream, value, dropped=None)
    assert source.cache.path.read_bytes() == before


@pytest.mark.parametrize("samples_per_epoch", [4, 3, 9])
@pytest.mark.parametrize("samples_per_step", [2, 3, 8])
def test_of_a_sample_that_comes_twice_in_a_step_the_later_counts(
    samples_per_epoch, samples_per_step
):
    """Two ranks would write its row at once, and the faster would decide what the run learns."""
    share = DomainShare("all", range(NUM_SAMPLES), samples_per_epoch, 0, 0)
    stream = make_stream(SampleOrder((share,), seed=3), samples_per_step)
    num_superseded = 0
    for step in range(12):
        (batch,) = stream.step(step)
        rows = list(zip(batch.sample_ids, batch.visits, strict=True))
        latest = dict(rows)
        expected = {visit for sample, visit in rows if latest[sample] != visit}
        assert stream.superseded(step) == expected
        num_superseded += len(expected)
    assert num_superseded or samples_per_step * samples_per_epoch in (8,)


@dataclass(frozen=True)
class PartlyUntrained(UnevenPack):
    """Half of the samples have no target: a rank may get none at all."""

    def sample(self, i: int, split: str = "train") -> PackedSample:
        sample = super().sample(i, split)
        if i % 2:
            sample = replace(sample, in_loss=np.zeros(self.seq_len, dtype=bool))
        return sample


def steps_of(changes: dict[str, Any], sp_size: int, rows: int, quantile: float) -> list[Any]:
    """Rows of two steps in the order of the pack: rank 1 of two gets samples without a target."""
    layout = init_layout(sp_size=sp_size)
    recipe = tiny_recipe(
        train__micro_batch_samples=rows,
        train__sequence_parallel_size=sp_size,
        dropout__quantile=quantile,
        **changes,
    )
    engine, stream = make_engine(recipe, layout)
    stream = replace(stream, pack=PartlyUntrained(), order=whole_epochs(8, seed=1))
    regulariser = make_regulariser(recipe, engine, stream.pack)
    return [
        train_step(engine, stream, regulariser, step=step, trained_frac=0.5, lr=1e-2)[0]
        for step in range(2)
    ]


@pytest.mark.parametrize(
    ("source", "quantile"),
    [
        (source, quantile)
        for i, source in enumerate(("online", "reference"))
        for j, quantile in enumerate((0.5, 0.0))
        if is_taken(i, j)
    ],
)
def test_ranks_without_a_target_and_steps_without_a_drop_hang_nothing(source, quantile):
    """With one row a micro-step some ranks have nothing to train on in it; at quantile 0 no token
    is low. The numbers are those of one process."""
    changes = {"entropy__source": source, "dropout__where": "both"}
    (expected,) = run_ranks(steps_of, changes, 1, 8, quantile, world_size=1)
    for world_size, sp_size in ((2, 1), (2, 2)):
        for rank in run_ranks(steps_of, changes, sp_size, 1, quantile, world_size=world_size):
            for found, row in zip(rank, expected, strict=True):
                for key in ("loss", "objective", "grad_norm", "drop_rate_realised"):
                    assert found[key] == pytest.approx(row[key], rel=1e-5), key
    assert expected[0]["loss"] > 0
    assert (expected[0]["drop_rate_realised"] > 0) == (quantile > 0)


def steps_without_any_target(sp_size: int) -> list[Any]:
    layout = init_layout(sp_size=sp_size)
    recipe = tiny_recipe(train__sequence_parallel_size=sp_size, entropy__source="reference")
    engine, stream = make_engine(recipe, layout)
    no_order = replace(stream, total_samples=0)  # every row only fills the batch
    regulariser = make_regulariser(recipe, engine, stream.pack)
    return [train_step(engine, no_order, regulariser, step=0, trained_frac=0.5, lr=1e-2)[0]]


@pytest.mark.parametrize("sp_size", [1, 2])
def test_a_step_without_any_target_has_no_numbers(sp_size):
    """A loss of 0 would pass for one that is learnt by heart (TRL issue 6668)."""
    for (row,) in run_ranks(steps_without_any_target, sp_size, world_size=2):
        measured = ("loss", "objective", "mean_entropy_nats", "drop_rate_realised", "grad_norm")
        assert {name: row[name] for name in measured} == dict.fromkeys(measured)
        assert row["updated"] is False  # weight decay and momentum move nothing either
