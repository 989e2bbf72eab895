"""Benchmarks asked of a run: which checkpoint answers, and where the results are kept."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from common.checksum import FileRecord
from tests.training.plain_model import Plain
from tests.training.task_files import PROMPTS, evaluate, write_pages_task
from training.checkpoints.manifest import read_manifest, write_manifest
from training.metrics.task_results import read_results
from training.tasks.weights import find_weights


@pytest.fixture(scope="module")
def run_dir(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that keeps what is asked of it."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "tasks"
    folder.mkdir()
    write_pages_task(folder)
    return folder


def test_a_run_is_asked_by_its_newest_checkpoint_and_keeps_the_results(
    run_dir, tasks_dir, tmp_path
):
    from training.checkpoints.export import export_run

    asked = ["--tasks", "our_pages", "--tasks-dir", str(tasks_dir)]
    ended = evaluate(str(run_dir), *asked, home=tasks_dir.parent)
    assert ended.returncode == 0, ended.stderr
    (result,) = read_results(run_dir)
    assert result["step"] == 8
    assert result["heldout_loss"] > 0
    kept = sorted(path.name for path in (run_dir / "tasks").iterdir())
    assert kept == ["our_pages.step-8.json"]  # and nothing of the weights
    assert not (run_dir / "export").exists()
    assert list((run_dir / "tensorboard" / "tasks").iterdir())

    plain = Plain(export_run(run_dir, out=tmp_path / "export"))
    pages = [prompt * 3 for prompt in PROMPTS]
    bits = -sum(plain.score_whole(page) for page in pages) / math.log(2)
    expected = bits / sum(len(page.encode()) for page in pages)
    found = result["results"]["our_pages"]["bits_per_byte,none"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_best_checkpoint_is_that_of_the_lowest_held_out_loss(run_dir):
    manifests = [read_manifest(folder) for folder in (run_dir / "checkpoints").glob("step-*")]
    assert len(manifests) > 1
    best = min(manifests, key=lambda manifest: manifest["heldout_loss"])
    assert find_weights(run_dir, checkpoint="best").step == best["step"]
    assert find_weights(run_dir, checkpoint=None).step == 8


def test_an_export_of_the_same_checkpoint_is_used_as_it_is(run_dir, tmp_path):
    from training.checkpoints.export import export_run

    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    assert find_weights(copy, checkpoint=None).checkpoint is not None
    export_run(copy)
    assert find_weights(copy, checkpoint=None).checkpoint is None
    assert find_weights(copy / "export", checkpoint=None).step == 8
    kept = copy / "checkpoints" / "step-00000008"
    manifest = kept / "complete.json"
    before = manifest.read_bytes()
    content = read_manifest(kept)
    files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
    write_manifest(kept, content | {"saved_by": "another run"}, files=files)
    assert find_weights(copy, checkpoint=None).checkpoint == kept
    manifest.write_bytes(before)
    (copy / "export" / "config.json").write_text("{}")
    assert find_weights(copy, checkpoint=None).checkpoint is not None
    with pytest.raises(ValueError, match="the export is damaged"):
        find_weights(copy / "export", checkpoint=None)
