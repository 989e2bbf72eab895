"""Many regularisers in one run: the same on another layout, over a resume and a reshard."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.training.short_runs import metrics, short_recipe, train_on_rank
from training.config.recipe import Recipe

TOGETHER: dict[str, Any] = {
    "regularisers": [
        *("entrodrop", "mir", "l2_sp"),
        *("mlp_dropout", "attention_output_dropout", "stochastic_depth", "hidden_dropout"),
    ],
    "dropout": {"softness": 0.5, "max_rate": 0.5, "sample_rates": "uniform"},
    "baseline": {"l2_sp": 20.0, "stochastic_depth": 0.4},
    "model__activation_checkpointing": True,
    "train__max_steps": 4,
    "evaluation": {"every_steps": None},
}


def recipe_of(corpus: Path, run_dir: Path, base: Path, **changes: Any) -> Recipe:
    changes = TOGETHER | changes
    checkpointing = changes.pop("model__activation_checkpointing")
    model = {"pretrained": str(base), "activation_checkpointing": checkpointing}
    return short_recipe(corpus, run_dir, **changes, model=model)


def trained(recipe: Recipe, *, world_size: int = 2) -> list[dict[str, Any]]:
    run_ranks(train_on_rank, recipe, world_size=world_size)
    return metrics(Path(recipe.run_dir), "step")


@pytest.fixture(scope="module")
def base(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(exported, tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture(scope="module")
def whole(small_corpus: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Rows of a run on 2 ranks that share each sequence, never stopped."""
    return trained(recipe_of(small_corpus, tmp_path_factory.mktemp("whole") / "run", base))


@pytest.fixture(scope="module")
def stopped(small_corpus: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    trained(recipe_of(small_corpus, run_dir, base, train__stop_after_steps=2))
    return run_dir


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_resume_goes_on_as_if_never_stopped(
    whole, stopped, base, small_corpus, tmp_path, world_size
):
    run_dir = Path(shutil.copytree(stopped, tmp_path / "run"))
    resumed = recipe_of(small_corpus, run_dir, base, world_size=world_size)
    rows = trained(resumed, world_size=world_size)
    if world_size == 2:
        assert rows == whole
    for row, expected in zip(rows, whole, strict=True):
        assert row["drop_rate_realised"] == expected["drop_rate_realised"]
        for key, bound in {"loss": 1e-5, "objective": 1e-5, "grad_norm": 1e-4}.items():
            assert row[key] == pytest.approx(expected[key], rel=bound), key


def test_a_resume_compares_the_base_where_it_is_needed(small_corpus, base, tmp_path):
    """`test_teacher.py` has such a resume with another base, which is refused."""
    assert recipe_of(small_corpus, tmp_path, base).needs_base
    assert not recipe_of(small_corpus, tmp_path, base, regularisers=["mlp_dropout"]).needs_base
