"""A sweep is planned as a whole: all mistakes are said before the first run starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.packing.pack import pack
from data_prep.shards import open_corpus
from tests.training.layouts import tiny_recipe
from tests.training.sweep_runs import (
    planned,
    write_recipe,
)
from training.config.load import dump_recipe
from training.run import fit
from training.sweeps.grid import Mistakes, PlannedRun, find_other_corpus, parse_axes, plan_runs
from training.sweeps.sweep import SweepOptions, run_sweep


def test_every_combination_has_a_recipe_and_a_folder_of_its_own(
    small_corpus: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    runs = planned(recipe, "dropout.max_rate=0.1,0.6", "regulariser=none,entrodrop", seeds="1,2")
    assert len({run.run_dir for run in runs}) == 8
    assert runs[0].run_dir == tmp_path / "runs" / "max_rate-0.1,regulariser-none,seed-1"
    assert [run.recipe.seed for run in runs[:4]] == [1, 2, 1, 2]
    assert runs[-1].recipe.dropout.max_rate == 0.6
    assert runs[-1].recipe.regularisers == ("entrodrop",)
    (copied,) = planned(recipe, "checkpoint.mirror=s3://bucket/runs", seeds="1")
    assert copied.recipe.checkpoint.mirror == f"s3://bucket/runs/{copied.run_dir.name}"


def test_values_with_commas_and_keys_that_end_alike_stay_apart(
    small_corpus: Path, tmp_path: Path
) -> None:
    (axis,) = parse_axes(["data.corpus='a,b',\"c, d\",e"], None)
    assert axis.values == ("'a,b'", '"c, d"', "e")
    (axis,) = parse_axes(["data.mixture=null,{all: {epochs: 2}, b: {epochs: 1}}"], None)
    assert axis.values == ("null", "{all: {epochs: 2}, b: {epochs: 1}}")
    recipe = write_recipe(small_corpus, tmp_path)
    (run,) = planned(recipe, "train.epochs=3", "data.mixture={all: {epochs: 2}}")
    assert run.recipe.data.mixture is not None
    assert "/" not in run.name
    (run,) = planned(recipe, "schedule.kind=constant", "dropout.curriculum.kind=linear")
    assert run.name == "schedule.kind-constant,dropout.curriculum.kind-linear"


@pytest.mark.parametrize(
    ("varied", "seeds", "message"),
    [
        ([], None, "nothing varies"),
        (["train.epochs"], None, "not of the form a.b=1,2,3"),
        (["train.epochs=1,,2"], None, "not of the form a.b=1,2,3"),
        (["train.epochs=1,1"], None, "1 is given twice"),
        (["seed=1,2"], "3,4", "seed is given twice"),
        (["run_dir=a,b"], None, "the sweep itself sets it"),
    ],
)
def test_what_is_no_sweep_is_refused(
    varied: Sequence[str], seeds: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_axes(varied, seeds)


def test_mistakes_of_all_combinations_are_told_at_once_and_nothing_is_written(
    small_corpus: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    options = SweepOptions(
        recipe=recipe,
        overrides=[],
        varied=[f"data.corpus={small_corpus},nowhere", "dropout.max_rate=0.3,7"],
        seeds="1,2",
    )
    with pytest.raises(ValueError, match="no run was started") as caught:
        run_sweep(options)
    message = str(caught.value)
    assert message.count("dropout.max_rate") == 1  # of four runs
    assert message.count("nowhere/manifest.json: not found") == 1
    assert "and 1 more" in message
    assert not (tmp_path / "runs").exists()


def test_values_that_are_the_same_written_otherwise_are_told(
    small_corpus: Path, tmp_path: Path
) -> None:
    """Two runs of one recipe would count as two seeds."""
    mistakes = Mistakes()
    axes = parse_axes(["optimizer.lr=1e-3,0.001", "seed=1,01"], None)
    plan_runs(write_recipe(small_corpus, tmp_path), [], axes, mistakes=mistakes)
    with pytest.raises(ValueError, match="is the same as lr-1e-3,seed-1") as caught:
        mistakes.raise_all()
    assert "lr-0.001,seed-01" in str(caught.value)


def test_processes_of_this_machine_are_not_those_of_jobs(
    small_corpus: Path, tmp_path: Path
) -> None:
    options = SweepOptions(
        recipe=write_recipe(small_corpus, tmp_path),
        overrides=[],
        varied=["dropout.max_rate=0.3"],
        num_processes=2,
        slurm="--nodes=1",
    )
    with pytest.raises(ValueError, match="--ntasks"):
        run_sweep(options)


def test_a_folder_of_other_settings_is_refused(small_corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    (run,) = planned(recipe, seeds="1")
    run.run_dir.mkdir(parents=True)
    other = replace(run.recipe, optimizer=replace(run.recipe.optimizer, lr=0.5))
    (run.run_dir / "recipe.resolved.yaml").write_text(dump_recipe(other))
    with pytest.raises(ValueError, match=r"optimizer\.lr was 0\.5, is 0\.01"):
        run_sweep(SweepOptions(recipe=recipe, overrides=[], varied=[], seeds="1"))


def test_a_complete_run_on_a_corpus_that_was_built_again_is_refused(
    corpus_copy: Path, tmp_path: Path
) -> None:
    """Its numbers would be those of the sweep (axolotl issue 1265)."""
    recipe = write_recipe(corpus_copy, tmp_path)
    (run,) = planned(recipe, seeds="1")
    run.run_dir.mkdir(parents=True)
    facts = {"kind": "run", "step": 0, "pack": open_corpus(corpus_copy).open_pack(64).fingerprint}
    (run.run_dir / "metrics.jsonl").write_text(json.dumps(facts) + "\n")
    options = SweepOptions(recipe=recipe, overrides=[], varied=[], seeds="1", is_dry=True)
    assert run_sweep(options) == 0
    pack(corpus_copy, seq_len=64, policy="concat", overwrite=True)
    with pytest.raises(ValueError, match="holds a run on a corpus that was built or packed other"):
        run_sweep(options)


def test_a_run_with_replay_of_a_corpus_that_was_built_again_is_refused(tmp_path: Path) -> None:
    run = PlannedRun("one", tiny_recipe(run_dir=str(tmp_path)))
    before = {"pack": "a", "pack_of_replay": "b", "pack_of_sets.general": "c"}
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"kind": "run", "step": 0, "total_steps": 8} | before) + "\n"
    )
    assert find_other_corpus(run, packs=before) is None
    assert find_other_corpus(run, packs=before | {"pack_of_sets.later": "d"}) is None
    for name in before:
        said = find_other_corpus(run, packs=before | {name: "other"})
        assert said is not None
        assert f"({name} was {before[name]}, is other); choose another run_dir" in said


def test_a_dry_sweep_tells_new_runs_from_those_that_cannot_be_read(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    broken, _ = planned(recipe, seeds="1,2")
    broken.run_dir.mkdir(parents=True)
    (broken.run_dir / "run_state.json").write_text("no state")
    run_sweep(SweepOptions(recipe=recipe, overrides=[], varied=[], seeds="1,2", is_dry=True))
    told = capsys.readouterr().out
    assert "seed-1: will be refused: its run_state.json cannot be read" in told
    assert "seed-2: new" in told


def test_a_model_is_compared_with_transformers_once_for_all_combinations(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    monkeypatch.setattr(fit, "_FOUND", {})
    monkeypatch.setattr(
        fit, "find_other_numbers", lambda model, *_, **__: compared.append(model.config)
    )
    recipe = write_recipe(small_corpus, tmp_path)
    varied = ["optimizer.lr=0.1,0.2", "model.config.rms_norm_eps=0.1,0.2"]
    assert run_sweep(SweepOptions(recipe, [], varied, is_dry=True)) == 0
    assert sorted(config["rms_norm_eps"] for config in compared) == [0.1, 0.2]
