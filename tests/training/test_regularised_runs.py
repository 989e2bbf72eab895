"""Many regularisers in one run: the same on any layout, over a resume and a reshard."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.short_runs import metrics, short_recipe, train_on_rank
from training.config.recipe import Recipe

Rows = list[dict[str, Any]]

IN_LAYERS = ("mlp_dropout", "attention_output_dropout", "stochastic_depth", "hidden_dropout")
EMA_TEACHER: dict[str, Any] = {
    "ema": {"half_life_steps": 2},
    "teacher": {"kind": "ema", "weight": 0.5},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "two_passes_towards_the_base": {
        "regularisers": ["entrodrop", "mir", "l2_sp", *IN_LAYERS],
        "dropout": {"softness": 0.5, "max_rate": 0.5, "sample_rates": "uniform"},
        "baseline": {"l2_sp": 20.0, "stochastic_depth": 0.4},
        "model__activation_checkpointing": True,
    },
    "replay_and_ema_teacher": {
        "regularisers": ["entrodrop", "mlp_dropout", "l2_sp"],
        "baseline": {"l2_sp": 20.0},
        "replay__share": 0.25,
        **EMA_TEACHER,
    },
    "base_teaches_replay": {
        "regularisers": ["random_token_dropout", "token_replacement", "mir"],
        "ema": {"half_life_epochs": 1.0},
        "replay__share": 0.5,
        "teacher": {"kind": "base", "on": "replay", "weight": 0.5},
    },
    "adapter": {
        "regularisers": ["entrodrop", "mlp_dropout"],
        "adapter": {"kind": "dora", "rank": 4, "dropout": 0.2},
        "replay__share": 0.25,
        **EMA_TEACHER,
    },
}
# processes, those that share a sequence, samples of a forward pass; the first is the measure
LAYOUTS = ((2, 2, 8), (1, 1, 8), (2, 1, 2), (4, 2, 2))
if not WHOLE:
    LAYOUTS = (LAYOUTS[0], LAYOUTS[1], LAYOUTS[3])
BOUNDS = {"loss": 1e-5, "objective": 1e-5, "grad_norm": 1e-4}


class Inputs(NamedTuple):
    """What all runs read."""

    corpus: Path
    general: Path
    base: Path
    runs: Path


@pytest.fixture(scope="module")
def inputs(
    small_corpus: Path,
    general_corpus: Path,
    exported: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Inputs:
    base = shutil.copytree(exported, tmp_path_factory.mktemp("base") / "model")
    return Inputs(small_corpus, general_corpus, base, tmp_path_factory.mktemp("runs"))


def recipe_of(inputs: Inputs, name: str, run_dir: Path, **changes: Any) -> Recipe:
    """Four steps, and no evaluation: what differs is in the rows of the steps."""
    changes = TOGETHER[name] | changes
    model = {
        "pretrained": str(inputs.base),
        "activation_checkpointing": changes.pop("model__activation_checkpointing", False),
    }
    if (share := changes.pop("replay__share", None)) is not None:
        changes["replay"] = {"corpus": str(inputs.general), "share": share}
    fixed = {"train__max_steps": 4, "evaluation": {"every_steps": None}, "model": model}
    return short_recipe(inputs.corpus, run_dir, **fixed, **changes)


def trained(recipe: Recipe, *, world_size: int = 2) -> Rows:
    run_ranks(train_on_rank, recipe, world_size=world_size)
    return metrics(Path(recipe.run_dir), "step")


@functools.cache
def never_stopped(inputs: Inputs, name: str, layout: tuple[int, int, int]) -> Rows:
    world_size, sp_size, rows = layout
    sizes = {"train__sequence_parallel_size": sp_size, "train__micro_batch_samples": rows}
    run_dir = inputs.runs / f"{name}-{world_size}-{sp_size}-{rows}"
    return trained(recipe_of(inputs, name, run_dir, **sizes), world_size=world_size)


@functools.cache
def stopped(inputs: Inputs, name: str) -> Path:
    run_dir = inputs.runs / f"{name}-stopped"
    trained(recipe_of(inputs, name, run_dir, train__stop_after_steps=2))
    return run_dir


def assert_same(found: Rows, expected: Rows) -> None:
    for row, other in zip(found, expected, strict=True):
        assert row["tokens"] == other["tokens"]
        assert row.get("drop_rate_realised") == other.get("drop_rate_realised")
        for key, bound in BOUNDS.items():
            assert row.get(key) == pytest.approx(other.get(key), rel=bound), key


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
@pytest.mark.parametrize("name", TOGETHER)
def test_any_layout_has_the_same_steps(inputs, name, layout):
    assert_same(never_stopped(inputs, name, layout), never_stopped(inputs, name, LAYOUTS[0]))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", TOGETHER)
def test_a_resume_goes_on_as_if_never_stopped(inputs, tmp_path, name, world_size):
    run_dir = Path(shutil.copytree(stopped(inputs, name), tmp_path / "run"))
    resumed = recipe_of(inputs, name, run_dir, world_size=world_size)
    rows, whole = trained(resumed, world_size=world_size), never_stopped(inputs, name, LAYOUTS[0])
    if world_size == 2:
        assert rows == whole
    assert_same(rows, whole)


def test_each_lever_counts(inputs, tmp_path):
    """Else the same numbers everywhere would say nothing."""
    for name, left_out in {
        "replay_and_ema_teacher": {"teacher": None},
        "base_teaches_replay": {"teacher": None},
        "adapter": {"ema": {"half_life_steps": 50}},
    }.items():
        without = trained(recipe_of(inputs, name, tmp_path / name, **left_out))
        whole = never_stopped(inputs, name, LAYOUTS[0])
        assert without[-1]["grad_norm"] != pytest.approx(whole[-1]["grad_norm"], rel=1e-3), name


def test_a_resume_compares_the_base_where_it_is_needed(inputs, tmp_path):
    """`test_teacher.py` has such a resume with another base, which is refused."""
    name = "two_passes_towards_the_base"
    assert recipe_of(inputs, name, tmp_path).needs_base
    assert not recipe_of(inputs, name, tmp_path, regularisers=["mlp_dropout"]).needs_base
