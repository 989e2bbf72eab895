"""Checkpoints that were damaged or poisoned; the last good one always remains."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.checksum import record_file
from tests.distributed import run_ranks
from tests.training.short_runs import message_of_error, metrics, saving_recipe, train_on_rank
from training.checkpoints.export import export_run
from training.checkpoints.manifest import (
    MANIFEST,
    find_corruption,
    newest_complete,
    read_manifest,
    write_manifest,
)

NEWEST, BEFORE = "step-00000008", "step-00000006"


def test_the_manifest_knows_every_file_and_what_wrote_it(saved_run):
    folder = saved_run / "checkpoints" / NEWEST
    manifest = read_manifest(folder)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*manifest["files"], MANIFEST}
    for name, record in manifest["files"].items():
        file = record_file(folder / name)
        assert record == {"num_bytes": file.num_bytes, "sha256": file.sha256}
    assert {"torch", "deepspeed", "transformers", "python"} == manifest["versions"].keys()
    assert manifest["layout"] == {
        "world_size": 2,
        "sequence_parallel_size": 2,
        "zero_stage": 3,
    }
    assert manifest["heldout_loss"] == metrics(saved_run, "evaluation")[-1]["loss"]


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


def test_every_damage_to_every_kind_of_file_is_found_and_told(saved_run, tmp_path):
    cases = []
    for kind in KINDS:
        for name, harm in DAMAGES.items():
            root = tmp_path / f"{name}-{kind.replace('/', '-')}"
            shutil.copytree(saved_run / "checkpoints", root)
            harm(root / NEWEST / kind)
            cases.append((root, kind))
    intruded = tmp_path / "one_more"
    shutil.copytree(saved_run / "checkpoints", intruded)
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
    saved_run, small_corpus, tmp_path
):
    run_dir = tmp_path / "flipped"
    shutil.copytree(saved_run, run_dir)
    flip(run_dir / "checkpoints" / NEWEST / KINDS[1])
    run_ranks(
        train_on_rank, saving_recipe(small_corpus, run_dir, entropy__source="cache"), world_size=2
    )
    assert metrics(run_dir, "step") == metrics(saved_run, "step")
    assert metrics(run_dir, "evaluation") == metrics(saved_run, "evaluation")
    assert find_corruption(run_dir / "checkpoints" / NEWEST, hashes=True) is None


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    saved_run, small_corpus, tmp_path
):
    run_dir = tmp_path / "lost"
    shutil.copytree(saved_run, run_dir)
    for checkpoint in (run_dir / "checkpoints").iterdir():
        flip(checkpoint / KINDS[0])
    recipe = saving_recipe(small_corpus, run_dir, entropy__source="cache")
    for message in run_ranks(message_of_error, recipe, world_size=2):
        assert "none of 2 checkpoints is intact" in message
    assert metrics(run_dir, "step") == metrics(saved_run, "step")


def test_names_that_lead_out_of_the_folder_are_refused(saved_run, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(saved_run / "checkpoints" / NEWEST, folder)
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
def test_code_in_a_checkpoint_is_refused_and_never_runs(saved_run, small_corpus, tmp_path, kind):
    """With checksums that fit, since whoever can write the one can write the other."""
    run_dir, trace = tmp_path / "poisoned", tmp_path / "ran"
    shutil.copytree(saved_run, run_dir)
    checkpoint = run_dir / "checkpoints" / NEWEST
    state = torch.load(checkpoint / kind, weights_only=False)
    torch.save({**state, "poison": Poison(trace)}, checkpoint / kind)
    names = read_manifest(checkpoint)["files"]
    files = {name: record_file(checkpoint / name) for name in names}
    write_manifest(checkpoint, read_manifest(checkpoint), files=files)

    for world_size, changes in ((2, {}), (1, {"train__sequence_parallel_size": 1})):
        if world_size == 1 and kind.startswith("random"):
            continue  # not read on another number of ranks
        recipe = saving_recipe(small_corpus, run_dir, entropy__source="cache", **changes)
        for message in run_ranks(message_of_error, recipe, world_size=world_size):
            assert "refused, loading it would run code" in message
            assert kind in message
    if kind.startswith("zero3"):
        with pytest.raises(ValueError, match="would run code"):
            export_run(run_dir, out=tmp_path / "export")
    assert not trace.exists()
    torch.load(checkpoint / kind, weights_only=False)
    assert trace.exists(), "the poison does not work, so the test shows nothing"


def message_of_evaluation(run_dir: Path) -> str:
    from training.run.evaluate_run import evaluate_run

    with pytest.raises(ValueError) as caught:
        evaluate_run(run_dir, [])
    return str(caught.value)


def test_an_export_that_changed_is_not_evaluated(saved_run, small_corpus, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(saved_run, run_dir)
    export_run(run_dir)
    flip(run_dir / "export" / "model.safetensors")
    (message,) = run_ranks(message_of_evaluation, run_dir, world_size=1)
    assert "model.safetensors: expected sha256" in message
    assert json.loads((run_dir / "export" / MANIFEST).read_text())["step"] == 8
