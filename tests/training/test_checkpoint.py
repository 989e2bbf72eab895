"""Checkpoints that were damaged, poisoned or met a full disk; the last good one always remains."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checksum import record_file
from tests.distributed import run_ranks
from tests.training.test_run import message_of_error, metrics, recipe_of, train_on_rank
from training.checkpoints.export import export_run
from training.checkpoints.manifest import (
    MANIFEST,
    find_corruption,
    newest_complete,
    read_manifest,
    write_manifest,
)
from training.config.recipe import Recipe

NEWEST, BEFORE = "step-00000008", "step-00000006"
CHANGES: dict[str, Any] = {"entropy__source": "cache"}


@pytest.fixture(scope="module")
def finished(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on 2 ranks with checkpoints at 6 and 8, never disturbed."""
    run_dir = tmp_path_factory.mktemp("checkpoints") / "whole"
    run_ranks(train_on_rank, recipe_of(small_corpus, run_dir, **CHANGES), world_size=2)
    return run_dir


def test_the_manifest_knows_every_file_and_what_wrote_it(finished):
    folder = finished / "checkpoints" / NEWEST
    manifest = read_manifest(folder)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*manifest["files"], MANIFEST}
    for name, record in manifest["files"].items():
        file = record_file(folder / name)
        assert record == {"num_bytes": file.num_bytes, "sha256": file.sha256}
    assert {"torch", "deepspeed", "transformers", "python"} == manifest["versions"].keys()
    assert manifest["layout"] == {"world_size": 2, "sequence_parallel_size": 2}
    assert manifest["heldout_loss"] == metrics(finished, "evaluation")[-1]["loss"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"garbage")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped_bit": flip,
    "cut_short": cut,
    "lengthened": lengthen,
    "deleted": Path.unlink,
}
KINDS = (
    "zero3/zero_pp_rank_1_mp_rank_00_model_states.pt",
    "zero3/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "random_state-rank00001.pt",
    "entropy_cache.f16",
    MANIFEST,
)


def test_every_damage_to_every_kind_of_file_is_found_and_told(finished, tmp_path):
    cases = []
    for kind in KINDS:
        for name, harm in DAMAGES.items():
            root = tmp_path / f"{name}-{kind.replace('/', '-')}"
            shutil.copytree(finished / "checkpoints", root)
            harm(root / NEWEST / kind)
            cases.append((root, kind))
    intruded = tmp_path / "one_more"
    shutil.copytree(finished / "checkpoints", intruded)
    extra = "zero3/zero_pp_rank_2_mp_rank_00_model_states.pt"
    shutil.copy(intruded / NEWEST / KINDS[0], intruded / NEWEST / extra)
    cases.append((intruded, extra))
    per_rank = run_ranks(chosen_of, [root for root, _ in cases], world_size=2)
    for (root, kind), (chosen, told), (chosen_by_other, told_by_other) in zip(
        cases, *per_rank, strict=True
    ):
        assert chosen == chosen_by_other == root / BEFORE, root.name
        assert str(root / NEWEST / kind) in told
        assert not told_by_other
        if kind != MANIFEST and root.name.startswith("flipped"):
            assert "expected sha256" in told
            assert "found" in told
            # by sizes alone, which is enough for a report, nothing is wrong
            assert newest_complete(root) == root / NEWEST
        assert newest_complete(root, hashes=True) == root / BEFORE


def chosen_of(roots: list[Path]) -> list[tuple[Path | None, str]]:
    from training.checkpoints.manifest import newest_verified
    from training.ranks.dist import init_layout

    layout = init_layout(sp_size=1)
    chosen = []
    for root in roots:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            chosen.append((newest_verified(root, layout), told.getvalue()))
    return chosen


def test_a_flipped_bit_in_the_optimizer_costs_the_steps_since_the_save_before(
    finished, small_corpus, tmp_path
):
    run_dir = tmp_path / "flipped"
    shutil.copytree(finished, run_dir)
    flip(run_dir / "checkpoints" / NEWEST / KINDS[1])
    run_ranks(train_on_rank, recipe_of(small_corpus, run_dir, **CHANGES), world_size=2)
    assert metrics(run_dir, "step") == metrics(finished, "step")
    assert metrics(run_dir, "evaluation") == metrics(finished, "evaluation")
    assert find_corruption(run_dir / "checkpoints" / NEWEST, hashes=True) is None


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    finished, small_corpus, tmp_path
):
    run_dir = tmp_path / "lost"
    shutil.copytree(finished, run_dir)
    for checkpoint in (run_dir / "checkpoints").iterdir():
        flip(checkpoint / KINDS[0])
    recipe = recipe_of(small_corpus, run_dir, **CHANGES)
    for message in run_ranks(message_of_error, recipe, world_size=2):
        assert "none of 2 checkpoints is intact" in message
    assert metrics(run_dir, "step") == metrics(finished, "step")


def test_names_that_lead_out_of_the_folder_are_refused(finished, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(finished / "checkpoints" / NEWEST, folder)
    record = record_file(folder / KINDS[0])
    shutil.copy(folder / KINDS[0], tmp_path / "outside.pt")
    for name in ("../outside.pt", str(tmp_path / "outside.pt")):
        write_manifest(folder, read_manifest(folder), files={name: record})
        assert "points outside the folder" in (find_corruption(folder) or "")
    (folder / "zero3").rename(tmp_path / "elsewhere")
    (folder / "link").symlink_to(tmp_path / "outside.pt")
    write_manifest(folder, read_manifest(folder), files={"link": record})
    assert "expected a plain file" in (find_corruption(folder) or "")


class Poison:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_code_in_a_checkpoint_is_refused_and_never_runs(finished, small_corpus, tmp_path, kind):
    """With checksums that fit, since whoever can write the one can write the other."""
    run_dir, trace = tmp_path / "poisoned", tmp_path / "ran"
    shutil.copytree(finished, run_dir)
    checkpoint = run_dir / "checkpoints" / NEWEST
    state = torch.load(checkpoint / kind, weights_only=False)
    torch.save({**state, "poison": Poison(trace)}, checkpoint / kind)
    names = read_manifest(checkpoint)["files"]
    files = {name: record_file(checkpoint / name) for name in names}
    write_manifest(checkpoint, read_manifest(checkpoint), files=files)

    for world_size, changes in ((2, {}), (1, {"train__sequence_parallel_size": 1})):
        if world_size == 1 and kind.startswith("random"):
            continue  # not read on another number of ranks
        recipe = recipe_of(small_corpus, run_dir, **CHANGES, **changes)
        for message in run_ranks(message_of_error, recipe, world_size=world_size):
            assert "refused, loading it would run code" in message
            assert kind in message
    if kind.startswith("zero3"):
        with pytest.raises(ValueError, match="would run code"):
            export_run(run_dir, out=tmp_path / "export")
    assert not trace.exists()
    torch.load(checkpoint / kind, weights_only=False)
    assert trace.exists(), "the poison does not work, so the test shows nothing"


# what fails, on which rank, at the save of which step; every other save succeeds
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
def test_training_goes_on_over_saves_that_fail(finished, small_corpus, tmp_path, in_background):
    checkpoint = {"every_steps": 1, "keep_last": 9, "on_failure": "go_on"}
    checkpoint |= {"in_background": in_background}
    recipe = recipe_of(small_corpus, tmp_path / "run", **CHANGES, checkpoint=checkpoint)
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
    assert metrics(tmp_path / "run", "step") == metrics(finished, "step")


@pytest.mark.parametrize("last", [False, True], ids=["stop", "last_save"])
def test_a_failed_save_ends_the_run_on_every_rank(small_corpus, tmp_path, last):
    """By default; and whatever the recipe says when it is the last of the run."""
    checkpoint = {"every_steps": 1, "on_failure": "go_on" if last else "stop"}
    changes = {"checkpoint": checkpoint, "train__stop_after_steps": 2 if last else None}
    recipe = recipe_of(small_corpus, tmp_path / "run", **changes)
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

    def test_a_disk_that_is_really_full_costs_nothing_but_time(finished, small_corpus, tmp_path):
        names = read_manifest(finished / "checkpoints" / NEWEST)["files"]
        num_bytes = sum(record["num_bytes"] for record in names.values())
        checkpoints = tmp_path / "run" / "checkpoints"
        settings = {"every_steps": 3, "keep_last": 1, "on_failure": "go_on"}
        recipe = recipe_of(small_corpus, tmp_path / "run", **CHANGES, checkpoint=settings)
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
        assert metrics(tmp_path / "run", "step") == metrics(finished, "step")


def message_of_evaluation(run_dir: Path) -> str:
    from training.run.evaluate_run import evaluate_run

    with pytest.raises(ValueError) as caught:
        evaluate_run(run_dir, [])
    return str(caught.value)


def test_an_export_that_changed_is_not_evaluated(finished, small_corpus, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    export_run(run_dir)
    flip(run_dir / "export" / "model.safetensors")
    (message,) = run_ranks(message_of_evaluation, run_dir, world_size=1)
    assert "model.safetensors: expected sha256" in message
    assert json.loads((run_dir / "export" / MANIFEST).read_text())["step"] == 8
