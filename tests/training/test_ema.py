"""The moving average of the weights: right, the same on any layout, over resumes and in exports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import run_ranks
from tests.training.short_runs import (
    metrics,
    saving_recipe,
    train_on_rank,
    train_with_changes,
    training_command,
)
from training.checkpoints.choice import find_checkpoint
from training.checkpoints.ema_files import read_average
from training.checkpoints.export import export_run
from training.checkpoints.manifest import read_manifest
from training.checkpoints.mixing import load_masters
from training.config.ema import Ema
from training.config.recipe import Recipe
from training.tasks.weights import find_weights

DECAY = 0.5 ** (1 / 2)
CHANGES: dict[str, Any] = {
    "ema": {"half_life_steps": 2},
    "checkpoint__every_steps": 1,
    "checkpoint__keep_last": 20,
}


def recipe_of(corpus: Path, run_dir: Path, **changes: Any) -> Recipe:
    return saving_recipe(corpus, run_dir, **{**CHANGES, **changes})


@pytest.fixture(scope="module")
def averaged(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On 2 ranks that share each sequence, never stopped, every step saved."""
    run_dir = tmp_path_factory.mktemp("ema") / "run"
    run_ranks(train_on_rank, recipe_of(small_corpus, run_dir), world_size=2)
    return run_dir


def checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def test_each_step_moves_the_average_towards_the_weights(averaged):
    average = read_average(checkpoint(averaged, 1))
    for step in range(2, 9):
        weights = load_masters(checkpoint(averaged, step))
        assert not torch.equal(weights["model.norm.weight"], average["model.norm.weight"])
        found = read_average(checkpoint(averaged, step))
        for name, before in average.items():
            expected = DECAY * before.double() + (1 - DECAY) * weights[name].double()
            torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-7)
        average = found


def test_a_checkpoint_has_four_bytes_more_for_each_weight(averaged):
    weights = load_masters(checkpoint(averaged, 8))
    num_weights = sum(w.numel() for name, w in weights.items() if name != "lm_head.weight")  # tied
    files = [path.stat().st_size for path in (checkpoint(averaged, 8) / "ema").iterdir()]
    assert len(files) == 2
    assert 4 * num_weights <= sum(files) < 4 * num_weights + 2 * 10_000  # names and padding


def test_training_is_what_it_was_without_an_average(averaged, finished):
    assert metrics(averaged, "step") == metrics(finished, "step")
    for row, plain in zip(
        metrics(averaged, "evaluation"), metrics(finished, "evaluation"), strict=True
    ):
        assert row == plain | {"ema_loss": row["ema_loss"]}


def test_its_loss_is_that_of_its_export(averaged, tmp_path):
    run_dir = Path(shutil.copytree(averaged, tmp_path / "run"))
    rows = metrics(run_dir, "evaluation")
    assert rows[0]["ema_loss"] == rows[0]["loss"]
    assert all(row["ema_loss"] > row["loss"] for row in rows[1:])  # it lags behind
    folder = Path(training_command("export", str(run_dir), "--weights", "ema").stdout.strip())
    average = read_average(checkpoint(run_dir, 8))
    exported = load_file(folder / "model.safetensors")
    assert all(torch.equal(weight, average[name]) for name, weight in exported.items())
    shown = json.loads(training_command("evaluate", "--json", str(run_dir)).stdout)
    assert shown["loss"] == pytest.approx(rows[-1]["ema_loss"], rel=1e-5)
    assert shown["mix"] == {"weights": "ema", "steps": [8], "tuned_share": 1.0}


def test_another_layout_has_the_same_average(averaged, small_corpus, tmp_path):
    recipe = recipe_of(
        small_corpus,
        tmp_path / "run",
        train__micro_batch_samples=2,
        checkpoint__every_steps=None,
    )
    run_ranks(train_on_rank, recipe, world_size=4)
    for row, expected in zip(
        metrics(tmp_path / "run", "evaluation"), metrics(averaged, "evaluation"), strict=True
    ):
        assert row["ema_loss"] == pytest.approx(expected["ema_loss"], rel=1e-6)
    found, expected = (read_average(checkpoint(run, 8)) for run in (tmp_path / "run", averaged))
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_resume_goes_on_with_the_average(averaged, small_corpus, tmp_path, world_size):
    run_dir = tmp_path / "run"
    stopped = recipe_of(small_corpus, run_dir, train__stop_after_steps=6)
    run_ranks(train_on_rank, stopped, world_size=2)
    resumed = recipe_of(small_corpus, run_dir, world_size=world_size)
    run_ranks(train_on_rank, resumed, world_size=world_size)
    found, expected = (read_average(checkpoint(run, 8)) for run in (run_dir, averaged))
    rows = metrics(run_dir, "evaluation"), metrics(averaged, "evaluation")
    if world_size == 2:
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
        assert rows[0] == rows[1]
    for row, reference in zip(*rows, strict=True):
        assert row["ema_loss"] == pytest.approx(reference["ema_loss"], rel=1e-6)


def test_the_average_in_bf16_is_rounded_as_weights_are(small_corpus, tmp_path):
    """Evaluated within the run, and from its export."""
    recipe = recipe_of(
        small_corpus, tmp_path / "run", deepspeed="ds_configs/zero3.json", train__max_steps=4
    )
    run_ranks(train_on_rank, recipe, world_size=2)
    training_command("export", str(tmp_path / "run"), "--weights=ema")
    shown = json.loads(training_command("evaluate", "--json", str(tmp_path / "run")).stdout)
    last = metrics(tmp_path / "run", "evaluation")[-1]
    assert shown["loss"] == pytest.approx(last["ema_loss"], rel=1e-4)
    assert abs(last["ema_loss"] - last["loss"]) > 5e-3 * last["loss"]


def test_the_average_may_decide_what_is_best(small_corpus, tmp_path, capsys):
    """A rate far too high: the weights get worse, their average does so later."""
    recipe = recipe_of(
        small_corpus,
        tmp_path / "run",
        ema={"half_life_steps": 2, "decides_best": True},
        evaluation__every_steps=1,
        optimizer__lr=0.6,
        schedule={"kind": "constant", "warmup_frac": 0.0},
    )
    run_ranks(train_on_rank, recipe, world_size=2)
    rows = {row["step"]: row for row in metrics(tmp_path / "run", "evaluation") if row["step"]}
    best = {key: min(rows, key=lambda step: rows[step][key]) for key in ("loss", "ema_loss")}
    assert best["loss"] != best["ema_loss"]
    chosen = find_checkpoint(tmp_path / "run", "best")
    assert chosen == checkpoint(tmp_path / "run", best["ema_loss"])
    loss = rows[best["ema_loss"]]["ema_loss"]
    assert read_manifest(chosen)["heldout_loss"] == loss
    trained = export_run(tmp_path / "run", checkpoints=["best"], out=tmp_path / "trained")
    assert "these are the weights as trained; export --weights ema" in capsys.readouterr().err
    for facts in (read_manifest(trained), vars(find_weights(tmp_path / "run", checkpoint="best"))):
        assert (facts["step"], facts["heldout_loss"]) == (best["ema_loss"], None)
    assert f"held-out loss (nats a token) | {loss:.4f}" not in (trained / "README.md").read_text()
    averaged = export_run(
        tmp_path / "run", checkpoints=["best"], averaged=True, out=tmp_path / "averaged"
    )
    assert read_manifest(averaged)["step"] == best["ema_loss"]
    assert "as trained" not in capsys.readouterr().err


def test_an_average_that_a_resume_adds_begins_there(finished, small_corpus, tmp_path):
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(checkpoint(run_dir, 8))
    recipe = recipe_of(small_corpus, run_dir)
    run_ranks(train_with_changes, recipe, ["recipe.ema"], world_size=2)
    average, begin = read_average(checkpoint(run_dir, 7)), load_masters(checkpoint(run_dir, 6))
    weights = load_masters(checkpoint(run_dir, 7))
    for name, weight in average.items():
        expected = DECAY * begin[name].double() + (1 - DECAY) * weights[name].double()
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-7)


def test_a_run_without_an_average_has_none_to_export(finished, tmp_path):
    with pytest.raises(ValueError, match="has no averaged weights: its run was without ema"):
        export_run(finished, averaged=True, out=tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("given", [{}, {"half_life_epochs": 1.0, "half_life_steps": 2.0}])
def test_one_half_life_is_needed(given):
    told = "set exactly one of ema.half_life_epochs and ema.half_life_steps"
    with pytest.raises(ValueError, match=told):
        Ema(**given)


def test_a_half_life_in_epochs_is_that_in_their_steps():
    epochs = Ema(half_life_epochs=0.5)
    assert epochs.decay(steps_per_epoch=8) == Ema(half_life_steps=4).decay(steps_per_epoch=1)
    assert replace(epochs, half_life_epochs=1.0).decay(steps_per_epoch=4) ** 4 == pytest.approx(0.5)
