"""Exports of several checkpoints' mean, and of weights between the base and the tuned ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distributed import run_ranks
from tests.training.short_runs import (
    metrics,
    saving_recipe,
    train_on_rank,
    training_command,
)
from training.__main__ import main
from training.checkpoints.export import export_run
from training.checkpoints.manifest import read_manifest
from training.checkpoints.mixing import Mix, find_mix, load_masters
from training.config.sections import Model
from training.tasks.weights import find_weights


@pytest.fixture(scope="module")
def tuned(
    exported: Path,
    small_corpus: Path,
    general_corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run that began with the export of another, evaluated on two sets."""
    run_dir = tmp_path_factory.mktemp("tuned") / "run"
    changes: dict[str, Any] = {
        "model": {"pretrained": str(exported)},
        "evaluation__sets": {"domain": {}, "general": {"corpus": str(general_corpus)}},
        "evaluation__max_samples": 6,
        "optimizer__lr": 3e-2,
    }
    recipe = saving_recipe(small_corpus, run_dir, **changes)
    run_ranks(train_on_rank, recipe, world_size=2)
    return run_dir


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_an_average_is_the_mean_of_the_fp32_weights(finished, tmp_path):
    out = export_run(finished, checkpoints=["last", "step-6"], out=tmp_path / "export")
    exported = weights_of(out)
    first, last = (load_masters(finished / "checkpoints" / f"step-0000000{i}") for i in (6, 8))
    assert not any(torch.equal(first[name], last[name]) for name in exported)
    for name, weight in exported.items():
        mean = (first[name].double() + last[name].double()) / 2
        np.testing.assert_allclose(weight.double(), mean, rtol=0, atol=1e-7)
    manifest = read_manifest(out)
    assert manifest["mix"] == {"weights": "trained", "steps": [6, 8], "tuned_share": 1.0}
    assert (manifest["step"], manifest["heldout_loss"]) == (8, None)


def test_the_newest_of_a_run_by_one_word(finished):
    assert find_mix(finished, ["last-2"]) == find_mix(finished, ["step-6", "step-8"])
    with pytest.raises(ValueError, match=r"step-6 and last-2 are the same checkpoint"):
        find_mix(finished, ["step-6", "last-2"])
    for word in ("last-0", "last-9"):
        with pytest.raises(ValueError, match=rf"^{word}: .* holds \d complete .*step-6, step-8\);"):
            find_mix(finished, [word])


def test_the_newest_of_a_run_are_no_one_checkpoint(finished):
    done = training_command("export", str(finished), "--checkpoint", "last-2", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--checkpoint last-2: names one checkpoint; " in done.stderr
    assert "--average last-2" in done.stderr and "Traceback" not in done.stderr


def test_the_newest_of_a_run_are_exported_by_the_word_that_was_interpolated(tuned):
    done = training_command("interpolate", str(tuned), "--checkpoint=last-2", "--shares=0.5")
    named = f"{tuned} --average last-2 --interpolate-base 0.5"
    assert done.stdout.splitlines()[-1] == f"lowest at 0.5: python -m training export {named}"


def test_an_average_of_the_same_is_the_same(finished):
    newest = finished / "checkpoints" / "step-00000008"
    mixed = Mix((newest,) * 3).load(Model(config={"model_type": "qwen3"}), dtype=torch.float32)
    assert all(torch.equal(mixed[name], weight) for name, weight in load_masters(newest).items())


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_weights_lie_between_base_and_tuned(tuned, exported, tmp_path, share):
    out = export_run(tuned, tuned_share=share, out=tmp_path / "export")
    base, found = weights_of(exported), weights_of(out)
    whole = load_masters(tuned / "checkpoints" / "step-00000008")
    for name, weight in found.items():
        if share in (0.0, 1.0):
            assert torch.equal(weight, (whole if share else base)[name])
        between = base[name] + share * (whole[name] - base[name])
        np.testing.assert_allclose(weight, between, rtol=0, atol=1e-6)
    assert ("mix" in read_manifest(out)) is (share != 1.0)


@pytest.mark.parametrize(
    ("words", "share", "said"),
    [
        (["last"], 1.5, "1.5 is no share between 0 (the base) and 1 (the tuned weights)"),
        (["last"], float("nan"), "nan is no share"),
        (["last"], 0.5, "this run has no base to interpolate with: it began from scratch"),
        (["step-8", "last"], 1.0, "step-8 and last are the same checkpoint"),
        (["step-7"], 1.0, "step-7: no such checkpoint"),
    ],
)
def test_what_cannot_be_mixed_is_refused(finished, tmp_path, words, share, said):
    with pytest.raises(ValueError) as caught:
        export_run(finished, checkpoints=words, tuned_share=share, out=tmp_path / "e")
    assert said in str(caught.value)
    assert not (tmp_path / "e").exists()


def test_a_share_out_of_range_is_told_with_its_flag(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--interpolate-base", "1.7"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --interpolate-base 1.7 is no share between 0 (the base) and 1")


def test_checkpoints_of_another_run_have_no_part_in_it(finished, tuned, tmp_path):
    other = tuned / "checkpoints" / "step-00000008"
    with pytest.raises(ValueError, match="its model, seed or corpus differs"):
        export_run(finished, checkpoints=["last", str(other)], out=tmp_path / "e")


def test_a_checkpoint_of_the_run_may_lie_elsewhere(finished, tmp_path):
    moved = shutil.copytree(finished / "checkpoints" / "step-00000006", tmp_path / "kept")
    out = export_run(finished, checkpoints=["last", str(moved)], out=tmp_path / "e")
    assert read_manifest(out)["mix"]["steps"] == [6, 8]


@pytest.mark.parametrize("damage", ["other numbers", "a weight is missing"])
def test_a_base_that_has_changed_since_is_refused(tuned, exported, tmp_path, damage):
    run_dir = Path(shutil.copytree(tuned, tmp_path / "run"))
    kept = run_dir / "recipe.resolved.yaml"
    base = Path(shutil.copytree(exported, tmp_path / "base"))
    kept.write_text(kept.read_text().replace(str(exported), str(base)))
    export_run(run_dir, tuned_share=0.5, out=tmp_path / "before")
    weights = weights_of(base)
    norm = weights.pop("model.layers.0.mlp.down_proj.weight")
    if damage == "other numbers":  # the same ones at other places
        weights["model.layers.0.mlp.down_proj.weight"] = norm.flip(0).contiguous()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no longer holds the weights that this run began with"):
        export_run(run_dir, tuned_share=0.5, out=tmp_path / "e")
    assert not (tmp_path / "e").exists()
    done = training_command("interpolate", str(run_dir), "--shares=0.5", check=False)
    assert done.returncode == 2 and "no longer holds the weights" in done.stderr


def test_a_base_that_is_gone_is_told_by_its_key(tuned, tmp_path):
    run_dir = Path(shutil.copytree(tuned, tmp_path / "run"))
    kept, gone = run_dir / "recipe.resolved.yaml", tmp_path / "gone"
    text = kept.read_text()
    base = re.search(r"pretrained: (\S+)", text)
    assert base is not None
    kept.write_text(text.replace(base[1], str(gone)))
    with pytest.raises(ValueError, match=f"model.pretrained: there is no folder {gone}"):
        export_run(run_dir, tuned_share=0.5, out=tmp_path / "e")
    done = training_command("interpolate", str(run_dir), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: model.pretrained: there is no folder {gone}" in done.stderr


@pytest.mark.parametrize("verb", ["interpolate", "evaluate"])
def test_a_folder_that_is_no_run_is_told(tmp_path, verb):
    done = training_command(verb, str(tmp_path), check=False)
    assert f"error: {tmp_path} is not a run folder: recipe.resolved.yaml is missing" in done.stderr


def test_a_weighted_mean_that_decides_is_shown(tuned):
    weights = "evaluation.weights={domain: 3, general: 1}"
    overrides = ("evaluation.best_by=weighted", weights)
    shown = training_command("interpolate", str(tuned), *overrides, "--shares=1").stdout
    losses = re.match(r" 1.00   domain (\S+)   general (\S+)   weighted mean (\S+)\n", shown)
    assert losses is not None
    domain, general, mean = map(float, losses.groups())
    assert mean == pytest.approx((3 * domain + general) / 4, abs=2e-4)


def test_results_of_a_mix_do_not_pass_for_those_of_its_checkpoint(tuned, tmp_path):
    run_dir = Path(shutil.copytree(tuned, tmp_path / "run"))
    out = training_command("export", str(run_dir), "--interpolate-base", "0.5").stdout.strip()
    assert out == str(run_dir / "export")
    assert find_weights(run_dir, checkpoint=None).checkpoint is not None
    assert find_weights(run_dir / "export", checkpoint=None).run_dir is None
    shown = json.loads(training_command("evaluate", "--json", str(run_dir)).stdout)
    assert shown["mix"] == {"weights": "trained", "steps": [8], "tuned_share": 0.5}


def test_an_export_elsewhere_is_evaluated_and_not_stored_as_the_runs_own(tuned, tmp_path):
    run_dir = Path(shutil.copytree(tuned, tmp_path / "run"))
    export_run(run_dir)
    own = json.loads(training_command("evaluate", "--json", str(run_dir)).stdout)
    stored = (run_dir / "evaluation.json").read_bytes()
    between = tmp_path / "between"
    export_run(run_dir, tuned_share=0.5, out=between)
    more = ("--export", str(between))
    mixed = json.loads(training_command("evaluate", "--json", str(run_dir), *more).stdout)
    assert mixed["mix"]["tuned_share"] == 0.5 and mixed["loss"] != own["loss"]
    summary = training_command("evaluate", str(run_dir), *more).stdout.splitlines()
    assert summary[-1] == f"not stored, being of {between}; --json prints all"
    assert (run_dir / "evaluation.json").read_bytes() == stored
    done = training_command("evaluate", str(run_dir), "--export", str(tmp_path), check=False)
    assert f"{tmp_path} is missing; run: " in done.stderr
    assert done.stderr.rstrip().endswith(f"--out {tmp_path}")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["alone", "two_to_a_sequence"])
def test_shares_have_the_losses_of_their_exports_on_any_layout(tuned, tmp_path, launcher):
    run_dir = Path(shutil.copytree(tuned, tmp_path / "run"))
    done = training_command("interpolate", str(run_dir), "--shares=0,0.5,1", launcher=launcher)
    found = json.loads((run_dir / "interpolation.json").read_text())
    first, *_, last = metrics(tuned, "evaluation")
    own = [row["loss"] for row in found["rows"]]
    assert own[0] == pytest.approx(first["loss"], rel=1e-5)
    assert own[2] == pytest.approx(last["loss"], rel=1e-5)
    assert [row["tuned_share"] for row in found["rows"]] == [0.0, 0.5, 1.0]
    assert found["best_share"] == found["rows"][own.index(min(own))]["tuned_share"]
    general = [row["sets"]["general"]["loss"] for row in found["rows"]]
    assert general[2] == pytest.approx(last["sets"]["general"]["loss"], rel=1e-5)
    lines = done.stdout.splitlines()
    assert f" 0.50   domain {own[1]:.4f}   general {general[1]:.4f}" in lines
    assert f"lowest at {found['best_share']:g}: python -m training export {run_dir}" in lines[-1]
    if launcher:
        export_run(run_dir, tuned_share=0.5)
        summary = training_command("evaluate", str(run_dir)).stdout.splitlines()
        change = own[1] - first["loss"]
        assert summary[1].startswith(f"  domain   {own[1]:.4f} ({change:+.4f})  ")
        change = general[1] - first["sets"]["general"]["loss"]
        assert summary[2].startswith(f"  general  {general[1]:.4f} ({change:+.4f})  ")
        assert summary[3:] == [str(run_dir / "evaluation.json")]
        evaluated = json.loads((run_dir / "evaluation.json").read_text())
        assert evaluated["loss"] == pytest.approx(own[1], rel=1e-5)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--shares=0.5", "error: this run has no base to interpolate with: it began from scratch"),
        ("--shares=half", "error: --shares half: numbers from 0 to 1, as in 0,0.25,"),
        ("--checkpoint=step-8,", "error: --checkpoint '': no such checkpoint in"),
        ("--checkpoint=", "error: --checkpoint '': no such checkpoint in"),
        ("--shares=0,2", "error: 2 is no share between 0 (the base) and 1 (the tuned weights)"),
    ],
)
def test_what_cannot_be_interpolated_is_one_sentence(finished, option, said):
    done = training_command("interpolate", str(finished), option, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr
