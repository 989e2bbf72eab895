"""What a plan says of a corpus is what training makes of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep.shards import open_corpus
from launch.planner import forecast as forecast_module
from launch.planner.advice import advise, more_gpus
from launch.planner.forecast import forecast
from launch.planner.machine import Machine
from launch.planner.table import as_data, as_text
from tests.launch.shipped_recipes import REPO_ROOT
from training.config.load import load_recipe
from training.config.recipe import Recipe
from training.ranks.dist import Layout
from training.run.plan import choose_mixture, derive_plan

pytestmark = pytest.mark.usefixtures("in_repository")


def recipe_of(corpus: Path, *changes: str) -> Recipe:
    batch = ["train.global_batch_tokens=256", "train.micro_batch_samples=1"]
    recipe = REPO_ROOT / "training" / "recipes" / "quickstart.yaml"
    data = [f"data.corpus={corpus}", "data.sequence_tokens=64"]
    return load_recipe(recipe, [*data, *batch, *changes])


ON_TWO = Machine(num_gpus=2, gpu_gib=16)


@pytest.mark.parametrize("epochs", [1, 1.4, 3])
@pytest.mark.parametrize("weights", [None, "{main: {epochs: 2.5}}"])
def test_a_plan_counts_the_steps_that_training_makes(
    small_corpus: Path, epochs: float, weights: str | None
) -> None:
    changes = [
        f"train.epochs={epochs}",
        "entropy.source=cache",
        *([f"data.mixture={weights}"] if weights else []),
    ]
    recipe = recipe_of(small_corpus, *changes)
    planned = forecast(recipe, ON_TWO)
    pack = open_corpus(small_corpus).open_pack(64)
    layout = Layout(rank=0, world_size=2, sp_size=1, device=torch.device("cpu"))
    plan = derive_plan(recipe, pack, choose_mixture(recipe, pack), layout)
    assert planned.duration.total_steps == plan.total_steps
    assert planned.duration.corpus_tokens == plan.samples_per_epoch * 64
    assert planned.arch.vocab == 512
    assert planned.host.entropies_on_disk == pack.num_samples("train") * 64 * 2
    assert f" {plan.total_steps:,} steps, " in as_text(planned, name="quickstart")


def test_a_corpus_that_is_not_packed_yet_has_no_steps(small_corpus: Path, tmp_path: Path) -> None:
    for recipe in (
        recipe_of(small_corpus, "data.sequence_tokens=128"),
        recipe_of(tmp_path / "absent", "model.config.vocab_size=512"),
        recipe_of(tmp_path, "model.config.vocab_size=512"),  # a folder, and no corpus
    ):
        planned = forecast(recipe, ON_TWO)
        assert planned.duration.total_steps is None
        assert "steps and days need the pack of" in as_text(planned, name="quickstart")


def test_a_plan_tells_of_few_steps_as_a_start_does(small_corpus: Path) -> None:
    samples = open_corpus(small_corpus).open_pack(64).num_samples("train")
    changes = [f"train.epochs={16 / samples}", "checkpoint.every_steps=null"]
    text = as_text(forecast(recipe_of(small_corpus, *changes), ON_TWO), name="quickstart")
    few, never, empty, verdict = text.split("\nnote: ", 1)[1].splitlines()[:4]
    assert "only 4 optimizer steps, as train.global_batch_tokens 256 is " in few
    assert never == (
        "note: evaluation.every_steps 20 is never due before the end: the run has 4 steps"
    )
    assert not empty and verdict.startswith("FITS: ")
    planned = forecast(recipe_of(small_corpus, *changes, "train.max_steps=4"), ON_TWO)
    assert as_data(planned, name="quickstart")["notes"] == []


def test_corpora_that_are_not_here_are_named(small_corpus: Path, tmp_path: Path) -> None:
    replay = f"replay={{corpus: {tmp_path / 'general'}, share: 0.5}}"
    text = as_text(forecast(recipe_of(small_corpus, replay), ON_TWO), name="quickstart")
    here, absent = f"data.corpus {small_corpus}", f"replay.corpus {tmp_path / 'general'}"
    assert f"note: {absent} is not here, so steps and days are not known\n" in text
    assert f"note: {here}" not in text
    longer = [replay, "data.sequence_tokens=128", "train.max_steps=3"]
    text = as_text(forecast(recipe_of(small_corpus, *longer), ON_TWO), name="quickstart")
    unknown = "so the tokens of an epoch are not known"
    assert f"note: {here} is not packed for samples of 128 tokens, {unknown}\n" in text
    assert f"note: {absent} is not here, {unknown}\n" in text
    given = forecast(recipe_of(small_corpus, replay), replace(ON_TWO, corpus_tokens=64_000))
    assert "is not here" not in as_text(given, name="quickstart")


@pytest.mark.parametrize("name", ["pack-64/pack.json", "pack-64/train.pieces", "manifest.json"])
def test_a_corpus_that_is_not_whole_is_refused_by_the_file(
    small_corpus: Path, tmp_path: Path, name: str
) -> None:
    corpus = shutil.copytree(small_corpus, tmp_path / "corpus")
    path = corpus / name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{path}: .*damaged"):
        forecast(recipe_of(corpus), ON_TWO)
    vocab = "model.config.vocab_size=512"
    given = forecast(recipe_of(corpus, vocab), replace(ON_TWO, corpus_tokens=64_000))
    assert given.duration.total_steps is not None
    path.unlink()
    if name == "manifest.json":
        with pytest.raises(ValueError, match="prepare the corpus first"):
            forecast(recipe_of(corpus), ON_TWO)
    else:
        with pytest.raises(ValueError, match=f"{path}: "):
            forecast(recipe_of(corpus), ON_TWO)


def test_a_mixture_of_other_domains_is_refused(small_corpus: Path) -> None:
    recipe = recipe_of(small_corpus, "data.mixture={mein: {epochs: 2}}")
    with pytest.raises(ValueError, match=r"data\.mixture: no domain 'mein'.*did you mean main"):
        forecast(recipe, ON_TWO)


def test_advice_opens_the_corpus_once_and_hides_no_mistake(
    monkeypatch: pytest.MonkeyPatch, small_corpus: Path, tmp_path: Path
) -> None:
    given = forecast(recipe_of(small_corpus), replace(ON_TWO, gpu_gib=0.001))
    monkeypatch.setattr(forecast_module, "read_size", None)
    monkeypatch.setattr(forecast_module, "find_architecture", None)
    assert advise(given) is None
    assert more_gpus(given) is None
    monkeypatch.setattr(forecast_module, "peak_moments", lambda _run: int("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        advise(given)
