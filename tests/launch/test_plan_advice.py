"""What the planner proposes fits, and is the cheapest change that does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from launch.__main__ import main
from launch.planner.advice import advise, faster, more_gpus
from launch.planner.forecast import forecast
from launch.planner.machine import Machine
from tests.launch.shipped_recipes import QWEN_8B, RECIPES, REPO_ROOT
from training.config.load import load_recipe

pytestmark = pytest.mark.usefixtures("in_repository")


@pytest.mark.parametrize(
    ("gpu_gib", "overrides", "expected"),
    [
        (60, ["train.micro_batch_samples=2"], ["model.activation_checkpointing=true"]),
        (50, [], ["model.activation_checkpointing=true"]),
        (18, ["model.activation_checkpointing=true"], ["offload"]),
    ],
)
def test_advice_fits_and_is_the_cheapest(
    gpu_gib: float, overrides: list[str], expected: list[str]
) -> None:
    off = ["model.activation_checkpointing=false", *overrides]
    machine = Machine(num_gpus=8, gpu_gib=gpu_gib)
    given = forecast(load_recipe(QWEN_8B, off), machine)
    assert not given.fits
    found = advise(given)
    assert found is not None
    changes, changed = found
    assert changed.fits
    assert [part for part in expected if any(part in change for change in changes)] == expected
    again = forecast(load_recipe(QWEN_8B, [*off, *changes]), machine)
    assert again.peak_bytes == changed.peak_bytes


def test_weights_that_do_not_fit_whole_are_sharded() -> None:
    given = forecast(
        load_recipe(QWEN_8B, ["deepspeed=ds_configs/zero1.json"]), Machine(num_gpus=8, gpu_gib=40)
    )
    assert not given.fits
    found = advise(given)
    assert found is not None and found[1].fits
    assert "deepspeed=ds_configs/zero3.json" in found[0]
    held = given.moments["save"]
    assert held.parameters == 2 * given.arch.parameters
    assert held.gradients == 4 * given.arch.parameters
    assert held.optimizer == pytest.approx(12 * given.arch.parameters / 8, rel=1e-3)


def test_cheaper_changes_come_first() -> None:
    """Each limit lies just below what the change before it needs."""
    recipe = load_recipe(QWEN_8B, ["model.activation_checkpointing=false", "seed=1"])
    recipe = replace(recipe, train=replace(recipe.train, micro_batch_samples=8))
    seen, gpu_gib = [], 1000.0
    while found := advise(forecast(recipe, Machine(num_gpus=8, gpu_gib=gpu_gib, margin_frac=0.0))):
        seen.append(found[0])
        gpu_gib = (found[1].peak_bytes - 1) / 2**30
    dearest_first = (
        "deepspeed=ds_configs/zero3_offload_all",
        "deepspeed=ds_configs/zero3_offload_optimizer",
        "train.sequence_parallel_size",
        "train.micro_batch_samples",
        "model.activation_checkpointing",
    )
    uses = [[any(c.startswith(key) for c in changes) for key in dearest_first] for changes in seen]
    assert uses == sorted(uses)
    assert sum(any(column) for column in zip(*uses, strict=True)) >= 4


def _settings_by_scale() -> list[tuple[str, int, str]]:
    page = (REPO_ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w[\w.]*)` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    cells = [(name, n, row[i]) for name, *row in rows for i, n in enumerate((1, 8, 64))]
    return [(name, n, cell.strip("`")) for name, n, cell in cells]


@pytest.mark.parametrize(("name", "num_gpus", "written"), _settings_by_scale())
def test_settings_by_scale_are_those_of_the_planner(name: str, num_gpus: int, written: str) -> None:
    if written == "needs 8":
        with pytest.raises(ValueError, match="--gpus 1 is not a multiple of"):
            forecast(load_recipe(f"{RECIPES / name}.yaml"), Machine(num_gpus, gpu_gib=80))
        return
    given = forecast(load_recipe(f"{RECIPES / name}.yaml"), Machine(num_gpus, gpu_gib=80))
    changes: list[str] = []
    if not given.fits:
        found = advise(given)
        assert found is not None
        changes, given = found
    if found := faster(given):
        changes, given = [*changes, *found[0]], found[1]
    assert given.fits
    assert (" ".join(changes) or "as it is") == written


def test_what_is_faster_takes_all_the_room_there_is() -> None:
    """Twice the micro-batch would not fit or is enough already; a byte less takes another."""
    recipe = load_recipe(QWEN_8B, ["train.micro_batch_samples=1"])
    found = faster(forecast(recipe, Machine(num_gpus=8, gpu_gib=141)))
    assert found is not None and found[1].fits
    train = found[1].recipe.train
    assert not found[1].recipe.model.activation_checkpointing
    more = replace(train, micro_batch_samples=2 * train.micro_batch_samples)
    is_at_most = train.micro_batch_samples * recipe.data.sequence_tokens == 16_384
    assert is_at_most or not forecast(replace(found[1].recipe, train=more), found[1].machine).fits
    limit = (found[1].peak_bytes - 1) / 2**30
    less = faster(forecast(recipe, Machine(num_gpus=8, gpu_gib=limit, margin_frac=0.0)))
    assert less is None or less[0] != found[0]


def test_more_gpus_are_named_when_no_change_fits() -> None:
    given = forecast(load_recipe(QWEN_8B), Machine(num_gpus=1, gpu_gib=80, host_gib=64))
    assert advise(given) is None
    found = more_gpus(given)
    assert found is not None
    num_gpus, changes = found
    again = load_recipe(QWEN_8B, changes)
    assert forecast(again, Machine(num_gpus=num_gpus, gpu_gib=80, host_gib=64)).fits


@pytest.mark.parametrize(
    "changes", [["regularisers=[mlp_dropout]"], ["adapter={rank: 8, dropout: 0.05}"]]
)
def test_tiles_are_not_proposed_beside_dropout_that_draws_for_whole_rows(
    changes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(RECIPES / "llama3.1_8b.yaml"), "--gpus", "1", "--gpu-gib", "18", *changes]
    assert main(["plan", *options]) == 1
    assert main(["plan", *options, "--longest"]) == 1
    assert "tiled_mlp" not in capsys.readouterr().out
