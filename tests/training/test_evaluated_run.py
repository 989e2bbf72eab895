"""The held-out losses of a run by band, and its evaluation afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from tests.distributed import run_ranks
from tests.training.short_runs import (
    ROOT,
    SEQUENCE_TOKENS,
    metrics,
    saving_recipe,
    train_on_rank,
    train_with_changes,
    training_command,
)
from training.run.evaluation import bands_of_stream, load_bands


@pytest.fixture
def exported_run(exported: Path) -> Path:
    """The run, whose evaluations only this file makes."""
    return exported.parent


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"edges_nats": 1, "shape": [1], "pack": ""}'])
def test_bands_that_are_damaged_are_refused_by_name(tmp_path, content):
    path = tmp_path / "heldout_bands.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}: damaged: .*cannot continue without it"):
        load_bands(tmp_path)


def test_bands_whose_targets_have_changed_are_refused_by_name(finished, tmp_path):
    folder = tmp_path / "bands"
    shutil.copytree(finished / "heldout_bands", folder)
    kept = load_bands(folder)
    content = bytearray(kept.path.read_bytes())
    content[5] ^= 1
    kept.path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{kept.path}: damaged: expected sha256"):
        load_bands(folder)
    kept.path.unlink()
    with pytest.raises(ValueError, match=f"{kept.path}: No such file"):
        load_bands(folder)


def test_bands_are_only_those_of_the_samples_they_were_made_of(finished, tmp_path, capsys):
    folder = tmp_path / "bands"
    shutil.copytree(finished / "heldout_bands", folder)
    recipe = json.loads((folder / "heldout_bands.json").read_text())
    assert (recipe["split"], recipe["first_sample"]) == ("val", 0)

    def found(**changes: Any) -> bool:
        pack_of = SimpleNamespace(fingerprint=recipe["pack"], seq_len=SEQUENCE_TOKENS)
        of = {"pack": pack_of, "split": "val", "first_sample": 0, "total_samples": 6}
        layout = SimpleNamespace(is_main=True)
        stream = SimpleNamespace(**(of | changes), layout=layout)
        is_found = bands_of_stream(folder, stream) is not None
        told = f"{folder}: made of other samples; no held-out losses by band\n"
        assert capsys.readouterr().err == ("" if is_found else told)
        return is_found

    assert found()
    others = {"split": "train", "first_sample": 3, "total_samples": 5}
    for key, value in others.items():
        assert not found(**{key: value})
    assert not found(pack=SimpleNamespace(fingerprint="other", seq_len=SEQUENCE_TOKENS))
    # runs of before they were recorded
    older = {key: recipe[key] for key in ("edges_nats", "shape", "pack", "sha256")}
    (folder / "heldout_bands.json").write_text(json.dumps(older))
    assert found()
    assert found(split="train", first_sample=3)
    assert not found(total_samples=5)


def test_bands_without_a_target_have_no_loss(small_corpus, tmp_path):
    """63 targets in 64 bands; a loss of 0 would be the best of all."""
    run_dir = tmp_path / "run"
    evaluation = {"every_steps": 100, "max_samples": 1, "num_bands": 64}
    changes = {"evaluation": evaluation, "train__max_steps": 1, "checkpoint__every_steps": None}
    run_ranks(train_on_rank, saving_recipe(small_corpus, run_dir, **changes), world_size=2)
    for row in metrics(run_dir, "evaluation"):
        losses = {bool(band["num_targets"]): band["loss"] for band in row["bands"]}
        assert losses[False] is None
        assert losses[True] > 0


def test_a_resume_without_its_rows_or_on_another_corpus_keeps_or_ends_the_bands(
    corpus_copy, tmp_path
):
    run_dir = tmp_path / "run"

    def train(*accepted: str, stop: int | None) -> dict[str, Any]:
        recipe = saving_recipe(corpus_copy, run_dir, train__stop_after_steps=stop)
        run_ranks(train_with_changes, recipe, list(accepted), world_size=2)
        return metrics(run_dir, "evaluation")[-1]

    assert "bands" in train(stop=3)
    (run_dir / "metrics.jsonl").unlink()
    assert "bands" in train(stop=6)
    pack(corpus_copy, seq_len=SEQUENCE_TOKENS, policy="concat", overwrite=True)
    assert "bands" not in train("pack", stop=None)


def test_evaluate_finds_the_losses_of_the_last_evaluation(exported_run):
    """The export on one process, against the training engine on two that share sequences."""
    training_command("evaluate", str(exported_run))
    found = json.loads((exported_run / "evaluation.json").read_text())
    expected = metrics(exported_run, "evaluation")[-1]
    assert found["num_targets"] == expected["num_targets"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for band, reference in zip(found["bands"], expected["bands"], strict=True):
        assert band["num_targets"] == reference["num_targets"]
        assert band["loss"] == pytest.approx(reference["loss"], rel=1e-5)


def test_evaluate_prints_a_summary_and_nothing_of_libraries(exported_run):
    """The user's own environment names no accelerator."""
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = ["-m", "training", "evaluate", str(exported_run)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    found = json.loads((exported_run / "evaluation.json").read_text())
    change = found["loss"] - metrics(exported_run, "evaluation")[0]["loss"]
    assert done.stdout.splitlines() == [
        "held-out loss of step 8, in nats per token; in parentheses the change since before the "
        "first step",
        f"  held-out  {found['loss']:.4f} ({change:+.4f})  {found['num_targets']:,} targets",
        str(exported_run / "evaluation.json"),
    ]
    assert "WARNING" not in done.stderr


def test_the_summary_of_fewer_samples_says_that_it_is_not_stored(exported_run):
    done = training_command("evaluate", str(exported_run), "evaluation.max_samples=3")
    _, row, last = done.stdout.splitlines()
    assert "(" not in row  # the loss before the first step is one of other samples
    path = exported_run / "evaluation.json"
    assert last == f"not stored, being of other data than {path}; --json prints all"


def test_fewer_held_out_samples_have_no_bands_and_are_not_the_runs_own(exported_run):
    training_command("evaluate", str(exported_run))
    own = (exported_run / "evaluation.json").read_bytes()
    done = training_command("evaluate", "--json", str(exported_run), "evaluation.max_samples=3")
    assert "bands" not in json.loads(done.stdout)
    told = f"{exported_run / 'heldout_bands'}: made of other samples; no held-out losses by band"
    assert told in done.stderr.splitlines()
    assert (exported_run / "evaluation.json").read_bytes() == own
    training_command("evaluate", str(exported_run), "evaluation.every_steps=5")
    assert (exported_run / "evaluation.json").read_bytes() != own  # at least its seconds


def test_other_data_is_evaluated_without_the_bands_of_the_runs_own(
    exported_run, small_corpus, tmp_path
):
    """And leaves the run's own result as it was."""
    training_command("evaluate", str(exported_run))
    own = (exported_run / "evaluation.json").read_bytes()
    other = tmp_path / "other"
    build(
        BuildOptions(
            inputs=(Path(shutil.__file__).parent / "email",),
            out=other,
            tokenizer=str(small_corpus / "tokenizer"),
            val_frac=0.3,
            num_workers=1,
        )
    )
    pack(other, seq_len=SEQUENCE_TOKENS)
    shown = json.loads(
        training_command("evaluate", "--json", str(exported_run), f"data.corpus={other}").stdout
    )
    assert shown["corpus"] == str(other)
    assert "bands" not in shown
    assert shown["loss"] > 0
    assert (exported_run / "evaluation.json").read_bytes() == own


def test_evaluations_that_begin_with_a_resume_have_no_bands(small_corpus, tmp_path):
    run_dir = tmp_path / "run"
    without = {
        "evaluation": {"every_steps": None, "max_samples": 8},
        "train__stop_after_steps": 3,
    }
    run_ranks(train_on_rank, saving_recipe(small_corpus, run_dir, **without), world_size=2)
    evaluation = {"every_steps": 4, "max_samples": 8}
    for last in (6, None):  # and with the resume after that
        recipe = saving_recipe(
            small_corpus, run_dir, evaluation=evaluation, train__stop_after_steps=last
        )
        run_ranks(train_on_rank, recipe, world_size=2)
    rows = metrics(run_dir, "evaluation")
    assert [row["step"] for row in rows] == [4, 6, 8]
    assert all(row["loss"] > 0 and "bands" not in row for row in rows)
