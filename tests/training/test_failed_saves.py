"""Saves that fail, as on a full disk, cost the run nothing but what it is told to lose."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.training.short_runs import message_of_error, metrics, saving_recipe, train_on_rank
from training.checkpoints.manifest import (
    find_corruption,
    newest_complete,
    read_manifest,
)
from training.config.recipe import Recipe

# what fails, on which rank, at the save of which step; every other save succeeds
NEWEST = "step-00000008"
CHANGES: dict[str, Any] = {"entropy__source": "cache"}
FAULTS = {2: ("write", 1), 3: ("fsync", 0), 4: ("pwrite", 1), 5: ("rename", 0), 6: ("mkdir", 0)}


def train_with_faults(recipe: Recipe) -> str:
    """What rank 0 says on stderr; the calls of `FAULTS` fail as on a full disk."""
    from training.checkpoints.save import CheckpointSave

    begin, publish = CheckpointSave.__init__, CheckpointSave.publish
    patch = pytest.MonkeyPatch()

    def begin_with_a_fault(save: CheckpointSave, *arguments: Any, **keywords: Any) -> None:
        name, rank = FAULTS.get(keywords["progress"].step, ("", None))
        if rank == int(os.environ["RANK"]):
            patch.setattr(os, name, refuse_as_full)
        with undone_if_it_fails(patch):
            begin(save, *arguments, **keywords)

    def publish_and_mend(*arguments: Any) -> Path:
        try:
            return publish(*arguments)
        finally:
            patch.undo()

    CheckpointSave.__init__ = begin_with_a_fault  # type: ignore[method-assign]
    CheckpointSave.publish = publish_and_mend  # type: ignore[method-assign]
    with contextlib.redirect_stderr(io.StringIO()) as told:
        train_on_rank(recipe)
    return told.getvalue()


@contextlib.contextmanager
def undone_if_it_fails(patch: pytest.MonkeyPatch) -> Iterator[None]:
    try:
        yield
    except ValueError:
        patch.undo()
        raise


def refuse_as_full(*_arguments: Any, **_keywords: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("in_background", [True, False])
def test_training_goes_on_over_saves_that_fail(saved_run, small_corpus, tmp_path, in_background):
    checkpoint = {"every_steps": 1, "keep_last": 9, "on_failure": "go_on"}
    checkpoint |= {"in_background": in_background}
    recipe = saving_recipe(small_corpus, tmp_path / "run", **CHANGES, checkpoint=checkpoint)
    told, told_by_other = run_ranks(train_with_faults, recipe, world_size=2)
    for step, (_, rank) in FAULTS.items():
        (line,) = (line for line in told.splitlines() if f"step-{step:08d} was not saved" in line)
        assert f"rank {rank}: " in line
        assert "No space left on device" in line
        assert "bytes" in line
        assert "are free" in line
    assert "was not saved" not in told_by_other
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        f"step-{step:08d}" for step in (1, 7, 8)
    ]
    assert all(find_corruption(path, hashes=True) is None for path in checkpoints.iterdir())
    assert metrics(tmp_path / "run", "step") == metrics(saved_run, "step")


@pytest.mark.parametrize("last", [False, True], ids=["stop", "last_save"])
def test_a_failed_save_ends_the_run_on_every_rank(small_corpus, tmp_path, last):
    """By default; and whatever the recipe says when it is the last of the run."""
    checkpoint = {"every_steps": 1, "on_failure": "go_on" if last else "stop"}
    changes = {"checkpoint": checkpoint, "train__stop_after_steps": 2 if last else None}
    recipe = saving_recipe(small_corpus, tmp_path / "run", **changes)
    first, second = run_ranks(message_with_faults, recipe, world_size=2)
    assert first == second
    assert "step-00000002 was not saved: rank 1: " in first
    assert "Older checkpoints are untouched" in first
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert kept.name == "step-00000001"
    assert find_corruption(kept, hashes=True) is None


def message_with_faults(recipe: Recipe) -> str:
    with pytest.raises(ValueError) as caught:
        train_with_faults(recipe)
    return str(caught.value)


def can_mount() -> bool:
    """Whether a disk of our own size can be had: as root, and not in every container."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@contextlib.contextmanager
def small_disk(folder: Path, *, num_bytes: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


if can_mount():  # elsewhere the faults above stand for it

    def test_a_disk_that_is_really_full_costs_nothing_but_time(saved_run, small_corpus, tmp_path):
        names = read_manifest(saved_run / "checkpoints" / NEWEST)["files"]
        num_bytes = sum(record["num_bytes"] for record in names.values())
        checkpoints = tmp_path / "run" / "checkpoints"
        settings = {"every_steps": 3, "keep_last": 1, "on_failure": "go_on"}
        recipe = saving_recipe(small_corpus, tmp_path / "run", **CHANGES, checkpoint=settings)
        with small_disk(checkpoints, num_bytes=num_bytes * 3 // 2):
            for message in run_ranks(message_of_error, recipe, world_size=2):
                assert "step-00000008 was not saved" in message
                assert "No space left on device" in message
                needed = int(message.partition("It needs ")[2].split()[0].replace(",", ""))
                assert needed == pytest.approx(num_bytes, rel=0.01)
            (kept,) = checkpoints.iterdir()
            assert kept.name == "step-00000003"
            assert find_corruption(kept, hashes=True) is None
            size = f"remount,size={num_bytes * 4}"
            subprocess.run(["mount", "-o", size, checkpoints], check=True)
            run_ranks(train_on_rank, recipe, world_size=2)
            assert newest_complete(checkpoints, hashes=True) == checkpoints / NEWEST
        assert metrics(tmp_path / "run", "step") == metrics(saved_run, "step")
