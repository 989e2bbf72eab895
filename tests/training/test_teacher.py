"""A teacher's part of the loss: right, the same on any layout, and over resumes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distributed import run_ranks
from tests.training.short_runs import message_of_error, metrics, short_recipe, train_on_rank
from training.config.recipe import Recipe
from training.config.teacher import Teacher as Settings
from training.run.teacher import RunningTeacher

EMA: dict[str, Any] = {"ema": {"half_life_steps": 2}, "teacher": {"kind": "ema", "weight": 0.5}}
BASE: dict[str, Any] = {"teacher": {"kind": "base", "weight": 0.25}}
KINDS = {"ema": EMA, "base": BASE}


def recipe_of(corpus: Path, run_dir: Path, **changes: Any) -> Recipe:
    """Four steps, and no evaluation: what a teacher changes is in the rows of the steps."""
    changes = {
        "dropout__where": "both",
        "train__max_steps": 4,
        "evaluation": {"every_steps": None},
        **changes,
    }
    return short_recipe(corpus, run_dir, **changes)


def trained(recipe: Recipe, *, world_size: int = 2) -> list[dict[str, Any]]:
    run_ranks(train_on_rank, recipe, world_size=world_size)
    return metrics(Path(recipe.run_dir), "step")


@pytest.fixture(scope="module")
def taught(
    small_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """Rows of runs on 2 ranks that share each sequence, never stopped."""
    folder = tmp_path_factory.mktemp("taught")
    return {
        name: trained(recipe_of(small_corpus, folder / name, **kind))
        for name, kind in KINDS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_the_model_halves_the_gradient_of_the_text(small_corpus, tmp_path, kind):
    """Before the first step both predict the same, and p - q is 0."""
    plain = trained(recipe_of(small_corpus, tmp_path / "plain", train__max_steps=1))
    rows = trained(recipe_of(small_corpus, tmp_path / "run", train__max_steps=1, **KINDS[kind]))
    share = 1.0 - KINDS[kind]["teacher"]["weight"]
    assert rows[0]["loss"] == plain[0]["loss"]  # of the text alone
    assert rows[0]["grad_norm"] == pytest.approx(share * plain[0]["grad_norm"], rel=1e-4)


def test_the_loss_to_a_teacher_that_is_the_model_is_its_entropy(small_corpus, tmp_path):
    changes: dict[str, Any] = {"regulariser": "none", "train__max_steps": 1}
    recipe = recipe_of(
        small_corpus, tmp_path / "run", teacher={"kind": "base", "weight": 1.0}, **changes
    )
    (row,) = trained(recipe)
    assert row["objective"] == pytest.approx(row["mean_entropy_nats"], rel=1e-5)
    assert row["grad_norm"] < 1e-4


@pytest.mark.parametrize(
    ("kind", "world_size", "sp_size", "micro_batch"),
    [("ema", 1, 1, 8), ("ema", 4, 2, 2), ("base", 2, 1, 2)],
)
def test_any_layout_has_the_same_losses_and_gradients(
    taught, small_corpus, tmp_path, kind, world_size, sp_size, micro_batch
):
    recipe = recipe_of(
        small_corpus,
        tmp_path / "run",
        train__sequence_parallel_size=sp_size,
        train__micro_batch_samples=micro_batch,
        **KINDS[kind],
    )
    rows = trained(recipe, world_size=world_size)
    for row, expected in zip(rows, taught[kind], strict=True):
        assert row["drop_rate_realised"] == expected["drop_rate_realised"]
        for key, bound in {"loss": 1e-6, "objective": 1e-6, "grad_norm": 1e-5}.items():
            assert row[key] == pytest.approx(expected[key], rel=bound), key


@pytest.mark.parametrize(("kind", "world_size"), [("ema", 2), ("base", 4)])
def test_a_resume_has_the_teacher_that_the_run_had(
    taught, small_corpus, tmp_path, kind, world_size
):
    run_dir = tmp_path / "run"
    trained(recipe_of(small_corpus, run_dir, train__stop_after_steps=2, **KINDS[kind]))
    resumed = recipe_of(small_corpus, run_dir, world_size=world_size, **KINDS[kind])
    rows = trained(resumed, world_size=world_size)
    if world_size == 2:
        assert rows == taught[kind]
    for row, expected in zip(rows, taught[kind], strict=True):
        assert row["objective"] == pytest.approx(expected["objective"], rel=1e-6)


def test_a_base_that_has_changed_is_no_teacher_on_a_resume(exported, small_corpus, tmp_path):
    base = Path(shutil.copytree(exported, tmp_path / "base"))
    changes: dict[str, Any] = {"model": {"pretrained": str(base)}, **BASE}
    run_dir = tmp_path / "run"
    trained(recipe_of(small_corpus, run_dir, train__stop_after_steps=2, **changes))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1.0
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    told = run_ranks(message_of_error, recipe_of(small_corpus, run_dir, **changes), world_size=2)
    assert told[0] == told[1]
    assert "base_weights (fingerprint of the weights of model.pretrained): was" in told[0]


def test_a_teacher_in_bf16_trains(small_corpus, tmp_path):
    rows = trained(
        recipe_of(small_corpus, tmp_path / "run", deepspeed="ds_configs/zero3.json", **EMA)
    )
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["updated"] for row in rows)


@pytest.mark.parametrize(
    ("on", "expected"),
    [("all", [0.5, 0.5, 0.5]), ("domain", [0.5, 0.0, 0.5]), ("replay", [0.0, 0.5, 0.0])],
)
def test_the_tokens_for_which_it_counts(on, expected):
    settings = Settings(kind="base", weight=0.5, on=on)
    nothing: Any = None
    teacher = RunningTeacher(nothing, nothing, settings, num_domain_samples=10)
    batch: Any = SimpleNamespace(sample_ids=(9, 10, -1), ids_BS=torch.zeros(3, 4))
    assert teacher.weights_BS(batch).tolist() == [[weight] * 4 for weight in expected]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": {"kind": "ema"}}, "teacher.kind: ema needs the section ema"),
        ({"teacher": {"kind": "base", "on": "replay"}}, "teacher.on: replay needs the section"),
        (
            BASE | {"dropout__where": "loss", "entropy__threshold": "lagged"},
            "teacher with entropy.threshold: lagged would need the head's logits twice",
        ),
    ],
)
def test_what_a_teacher_lacks_is_told(small_corpus, tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        short_recipe(small_corpus, tmp_path, **changes)
