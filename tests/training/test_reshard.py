"""A run goes on with another number of ranks, or another split of them, as if nothing had been."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.short_runs import (
    metrics,
    saving_recipe,
    train_on_rank,
    train_with_changes,
)
from training.checkpoints.manifest import read_manifest
from training.checkpoints.reshard import keeping_settings

# ranks that go on, ranks that share a sequence: from two that share the data
LAYOUTS = {"one": (1, 1), "two_to_a_sequence": (2, 2), "four": (4, 1), "four_by_two": (4, 2)}
CHANGES: dict[str, Any] = {
    "train__sequence_parallel_size": 1,
    # what DeepSpeed's loader would mix up between groups, and Adam's steps, would show in losses
    "optimizer__weight_decay": 0.5,
    "dropout__where": "both",
    "entropy__source": "cache",
}
STEPS_BEFORE = 4


@pytest.fixture(scope="module")
def undisturbed(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("relayout") / "whole"
    run_ranks(train_on_rank, saving_recipe(small_corpus, run_dir, **CHANGES), world_size=2)
    return run_dir


@pytest.mark.parametrize("layout", LAYOUTS if WHOLE else ("one", "four_by_two"))
def test_a_run_goes_on_with_other_ranks(undisturbed, small_corpus, tmp_path, layout):
    world_size, sp_size = LAYOUTS[layout]
    run_dir = tmp_path / "run"
    stopping = {**CHANGES, "train__stop_after_steps": STEPS_BEFORE}
    run_ranks(train_on_rank, saving_recipe(small_corpus, run_dir, **stopping), world_size=2)
    changes = {**CHANGES, "train__sequence_parallel_size": sp_size}
    # in two micro-steps, where it is done in one before
    changes["train__micro_batch_samples"] = 8 * sp_size // world_size // 2
    run_ranks(train_on_rank, saving_recipe(small_corpus, run_dir, **changes), world_size=world_size)

    found, expected = metrics(run_dir, "step"), metrics(undisturbed, "step")
    assert [row["step"] for row in found] == list(range(1, 9))
    assert found[:STEPS_BEFORE] == expected[:STEPS_BEFORE]
    for row, reference in zip(found, expected, strict=True):
        for key in ("tokens", "epoch", "lr", "gamma", "drop_rate_realised"):
            assert row[key] == reference[key], key  # the same samples and the same draws
        assert row["loss"] == pytest.approx(reference["loss"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-5)
    folders = run_dir / "checkpoints"
    assert sorted(path.name for path in folders.iterdir()) == ["step-00000006", "step-00000008"]
    assert read_manifest(folders / "step-00000008")["layout"]["world_size"] == world_size


def test_a_resume_on_other_ranks_of_a_damaged_checkpoint_is_refused(small_corpus, tmp_path):
    """The conversion reads files by DeepSpeed's own way: they are verified before."""
    run_dir = tmp_path / "run"
    stopping = {**CHANGES, "train__stop_after_steps": 2, "evaluation": {"every_steps": None}}
    run_ranks(train_on_rank, saving_recipe(small_corpus, run_dir, **stopping), world_size=2)
    (shard, *_) = sorted((run_dir / "checkpoints").glob("step-*/zero3/*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(AssertionError, match="expected sha256"):
        run_ranks(train_on_rank, saving_recipe(small_corpus, run_dir, **stopping), world_size=1)


def test_a_change_of_the_decay_that_is_accepted_counts_on_any_ranks(
    undisturbed, small_corpus, tmp_path
):
    """What a checkpoint says of the optimizer's settings does not come back with its state."""
    stopped = tmp_path / "stopped"
    stopping = {**CHANGES, "train__stop_after_steps": STEPS_BEFORE}
    run_ranks(train_on_rank, saving_recipe(small_corpus, stopped, **stopping), world_size=2)
    losses = []
    for world_size in (2, 1):
        run_dir = Path(shutil.copytree(stopped, tmp_path / f"on_{world_size}"))
        changes = {**CHANGES, "optimizer__weight_decay": 50.0}
        recipe = saving_recipe(small_corpus, run_dir, **changes)
        run_ranks(
            train_with_changes, recipe, ["recipe.optimizer.weight_decay"], world_size=world_size
        )
        losses.append([row["loss"] for row in metrics(run_dir, "step")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    before = [row["loss"] for row in metrics(undisturbed, "step")]
    assert losses[0][: STEPS_BEFORE + 1] == before[: STEPS_BEFORE + 1]
    assert losses[0][-1] != pytest.approx(before[-1], rel=1e-3)


class CountingInNumbers(torch.optim.Optimizer):
    """As DeepSpeed's Adam on the host, which a JSON with offload brings."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__(weights, {"lr": 0.5, "weight_decay": 0.1, "bias_correction": True})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            assert group["bias_correction"]
            for weight in group["params"]:
                zeros = torch.zeros_like(weight)
                state = self.state[weight] or {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros}
                self.state[weight] = state | {"step": state["step"] + 1}


@pytest.mark.parametrize("goes_to_the_host", [True, False])
def test_a_resume_may_have_its_optimizer_elsewhere(goes_to_the_host):
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.ones(3)
    adam = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.2, fused=True)
    before, after = adam, CountingInNumbers([weight])
    if not goes_to_the_host:
        before, after = after, before
    before.step()
    own = {key: value for key, value in after.param_groups[0].items() if key != "params"}
    with keeping_settings(after):
        # as DeepSpeed's own loaders do: all settings, and the state as it is in the file
        after.param_groups[0] = before.param_groups[0] | {"params": [weight]}
        after.state[weight] = dict(before.state[weight])
    assert {key: after.param_groups[0][key] for key in own} == own
    after.step()
    assert after.state[weight]["step"] == 2
    assert torch.is_tensor(after.state[weight]["step"]) != goes_to_the_host
