"""A word of --checkpoint means one complete checkpoint of the run, or is refused by its name."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from training.checkpoints.choice import explaining_removals, find_checkpoint
from training.checkpoints.manifest import MANIFEST, read_manifest, write_manifest


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step, loss in ((3, 2.0), (6, 1.5), (9, 1.5), (12, math.nan), (15, None)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_manifest(folder, {"step": step, "tokens": 9, "heldout_loss": loss}, files={})
    return tmp_path


@pytest.mark.parametrize(
    ("word", "step"),
    [("best", 6), ("last", 15), ("newest", 15), ("step-9", 9), ("step-00000003", 3)],
)
def test_a_word_means_a_checkpoint_of_the_run(run_dir, word, step):
    assert find_checkpoint(run_dir, word) == run_dir / "checkpoints" / f"step-{step:08d}"


def test_a_folder_is_taken_as_it_is(run_dir):
    folder = run_dir / "checkpoints" / "step-00000009"
    assert find_checkpoint(run_dir / "elsewhere", str(folder)) == folder


def test_an_incomplete_one_is_not_the_best_and_is_refused_when_named(run_dir):
    (run_dir / "checkpoints" / "step-00000006" / MANIFEST).unlink()
    assert find_checkpoint(run_dir, "best").name == "step-00000009"
    with pytest.raises(ValueError, match=r"checkpoint is incomplete or damaged: .*step-00000006"):
        find_checkpoint(run_dir, "step-6")


def test_one_that_holds_the_base_models_loss_is_not_the_best(run_dir):
    """As older versions saved those of before the first evaluation."""
    folder = run_dir / "checkpoints" / "step-00000001"
    folder.mkdir()
    content = {"step": 1, "tokens": 3, "heldout_loss": 0.5, "evaluated_step": 0}
    write_manifest(folder, content, files={})
    assert find_checkpoint(run_dir, "best").name == "step-00000006"


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("bets", "did you mean best?"),
        ("step-60", "there are best, last, step-3, step-6, step-9, step-12, step-15"),
        ("x", "there are best, last, step-3, step-6, step-9, step-12, step-15"),
    ],
)
def test_a_word_that_means_nothing_is_refused_with_what_there_is(run_dir, word, told):
    with pytest.raises(ValueError) as caught:
        find_checkpoint(run_dir, word)
    assert str(caught.value).startswith(f"--checkpoint {word}: no such checkpoint in {run_dir}")
    assert str(caught.value).endswith(told)


def test_no_name_does_not_mean_the_current_folder(run_dir):
    with pytest.raises(ValueError, match=r"^--checkpoint '': no such checkpoint in .*; there are"):
        find_checkpoint(run_dir, "")


def test_a_run_without_a_checkpoint_has_no_best(tmp_path):
    with pytest.raises(ValueError, match="holds no complete checkpoint with a held-out loss"):
        find_checkpoint(tmp_path, "best")
    with pytest.raises(ValueError, match="holds no complete checkpoint; train first"):
        find_checkpoint(tmp_path, "last")


def test_a_checkpoint_that_a_run_removes_while_it_is_read_is_told(run_dir):
    folder = run_dir / "checkpoints" / "step-00000006"
    told = r"step-00000006 was removed while it was read: .*try again"
    with pytest.raises(ValueError, match=told), explaining_removals(run_dir):
        shutil.rmtree(folder)
        read_manifest(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=told), explaining_removals(run_dir):
        shutil.rmtree(folder)
        raise ValueError(f"{folder}/zero3 is missing")


@pytest.mark.parametrize("word", ["step-60", "checkpoints/step-00000060"])
def test_one_that_never_was_is_not_told_to_be_removed(run_dir, word):
    with pytest.raises(ValueError, match="no such checkpoint"), explaining_removals(run_dir):
        find_checkpoint(run_dir, word if word == "step-60" else str(run_dir / word))
