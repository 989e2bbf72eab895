"""The export of a run: the engine's logits, what it replaces, and training that begins with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.short_runs import (
    message_of_error,
    metrics,
    saving_recipe,
    train_on_rank,
    train_with_changes,
    training_command,
)
from training.__main__ import main
from training.checkpoints.export import export_run, load_run_recipe
from training.checkpoints.manifest import newest_complete
from training.config.recipe import Recipe


def test_the_export_has_the_logits_of_the_engine_in_plain_transformers(
    finished, exported, small_corpus
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer(
        "def loads(s, *, cls=None):\n    return cls(s)\n", return_tensors="pt"
    ).input_ids
    assert tokenizer.decode(ids[0]).startswith("def loads(s, *, cls=None):")
    assert not sorted(path.name for path in exported.glob("*.bin"))
    with torch.no_grad():
        expected = plain(input_ids=ids).logits[0]
    recipe = saving_recipe(small_corpus, finished, train__sequence_parallel_size=1)
    (found,) = run_ranks(engine_logits, recipe, ids, world_size=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def engine_logits(recipe: Recipe, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the trained weights in the training engine, one row as one document.

    The checkpoint belongs to 2 ranks, so its masters are put into an engine of one.
    """
    import deepspeed

    from training.checkpoints.mixing import trained_weights
    from training.data.documents import find_documents
    from training.model.causal_lm import resolve_model_config
    from training.model.engine import build_engine
    from training.model.inputs import ModelInputs
    from training.ranks.dist import init_layout

    layout = init_layout(sp_size=1)
    config = resolve_model_config(recipe.model, vocab_size=512, dtype=torch.float32)
    engine = build_engine(recipe, config, layout=layout, num_micro_steps=1)
    newest = newest_complete(Path(recipe.run_dir) / "checkpoints")
    trained = trained_weights(newest, dtype=torch.float32)
    for name, parameter in engine.model.lm.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(trained[name])
    head, seen = engine.model.lm.get_output_embeddings(), []
    head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    positions = torch.arange(ids.shape[1])[None]
    documents = find_documents(positions, device=layout.device)
    with torch.no_grad():
        engine.score(ModelInputs(ids, positions, ids, documents))
        with deepspeed.zero.GatheredParameters([head.weight]):
            return (seen[0][0] @ head.weight.T).clone()


def test_export_replaces_nothing_but_an_export(finished, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for taken in (tmp_path, finished, finished / "checkpoints"):
        with pytest.raises(ValueError, match="exists and is not an export"):
            export_run(finished, out=taken)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert newest_complete(finished / "checkpoints") is not None


def test_export_of_a_folder_without_a_run_is_a_clear_error(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        training_command("export", str(tmp_path))
    assert caught.value.returncode == 2
    assert caught.value.stderr.startswith("error: ")
    assert "is not a run folder" in caught.value.stderr


@pytest.mark.parametrize("verb", ["export", "evaluate", "generate"])
@pytest.mark.parametrize(("asked", "there"), [("mian", "main"), ("mian/export", "main"), ("x", "")])
def test_a_folder_that_is_not_there_is_told_with_the_nearest(
    verb, asked, there, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # which the verbs set
    (tmp_path / "main").mkdir()
    assert main([verb, str(tmp_path / asked)]) == 2
    hint = f"; did you mean {tmp_path / there}?" if there else ""
    assert capsys.readouterr().err == f"error: there is no folder {tmp_path / asked}{hint}\n"


@pytest.mark.parametrize("content", [b"", b"seed: 1\nseed: 2", b"\xff", b"a: [", b"sede: 1"])
def test_a_recipe_that_a_run_keeps_damaged_is_refused_by_name(tmp_path, content):
    path = tmp_path / "recipe.resolved.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        load_run_recipe(tmp_path)


@pytest.mark.parametrize("sp_size", [1, 2] if WHOLE else [2])
def test_pretrained_weights_are_adapted_in_bf16_with_checkpointed_activations(
    finished, exported, small_corpus, tmp_path, sp_size
):
    run_dir = tmp_path / "adapted"
    changes = {
        "model": {"pretrained": str(exported), "activation_checkpointing": True},
        "deepspeed": "ds_configs/zero3.json",
        "train__sequence_parallel_size": sp_size,
        "train__max_steps": 3,
        "optimizer__lr": 1e-3,
        "dropout__where": "both",
    }
    run_ranks(train_on_rank, saving_recipe(small_corpus, run_dir, **changes), world_size=2)
    evaluations = metrics(run_dir, "evaluation")
    # the adapted run starts where the first one ended, within the rounding of bf16
    assert evaluations[0]["loss"] == pytest.approx(
        metrics(finished, "evaluation")[-1]["loss"], rel=2e-3
    )
    assert evaluations[-1]["loss"] < evaluations[0]["loss"]
    folder = training_command("export", str(run_dir)).stdout.strip()
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_an_export_that_the_run_has_left_behind_is_told(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "export", ignore_errors=True)
    older = run_dir / "checkpoints" / "step-00000006"
    training_command("export", str(run_dir), "--checkpoint", str(older))
    done = training_command("evaluate", str(run_dir))
    told = f"WARNING: {run_dir}/export is of step 6, the newest checkpoint of step 8"
    assert told in done.stderr
    assert json.loads((run_dir / "evaluation.json").read_text())["step"] == 6
    training_command("export", str(run_dir))
    done = training_command("evaluate", "--json", str(run_dir))
    assert "WARNING" not in done.stderr
    assert json.loads(done.stdout)["step"] == 8


def test_a_base_model_whose_configuration_changes_during_the_run_is_refused(
    finished, exported, small_corpus, tmp_path
):
    """The weights are the checkpoint's: with another rope_theta they are those of no model."""
    base, run_dir = tmp_path / "base", tmp_path / "run"
    shutil.copytree(exported, base)

    def recipe(stop: int | None) -> Recipe:
        changes = {"model": {"pretrained": str(base)}, "train__stop_after_steps": stop}
        return saving_recipe(small_corpus, run_dir, **changes)

    run_ranks(train_on_rank, recipe(3), world_size=2)
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 50
    config["transformers_version"] = "4.0"
    (base / "config.json").write_text(json.dumps(config))
    for message in run_ranks(message_of_error, recipe(None), world_size=2):
        assert f"configuration is not the one that {run_dir} was trained with" in message
        assert "model.rope_parameters.rope_theta: was 10000.0, is 500000.0" in message
    run_ranks(train_with_changes, recipe(6), ["model.rope_parameters"], world_size=2)
    run_ranks(train_with_changes, recipe(None), [], world_size=2)  # now it is that of the run
