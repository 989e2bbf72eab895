"""A run goes on with another number of ranks, or another split of them, as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.short_runs import metrics, saving_recipe, train_on_rank
from training.checkpoints.manifest import read_manifest

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
