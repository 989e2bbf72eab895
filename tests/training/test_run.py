"""A whole run on real text: stopped and resumed, exported, evaluated, launched for real."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_prep.build import BuildOptions, build
from data_prep.packing.pack import pack
from tests.distributed import run_ranks
from tests.training.short_runs import SEQUENCE_TOKENS, metrics, short_recipe, train_on_rank
from tests.warm_python import warm_python
from training.checkpoints.export import export_run, load_run_recipe
from training.checkpoints.manifest import newest_complete
from training.config.load import dump_recipe
from training.config.recipe import Recipe
from training.run.evaluation import bands_of_stream, load_bands

ROOT = Path(__file__).parents[2]


def recipe_of(corpus: Path, run_dir: Path, **changes: Any) -> Recipe:
    """The short run, saved every third step."""
    return short_recipe(corpus, run_dir, **{"checkpoint__every_steps": 3, **changes})


@pytest.fixture(scope="module")
def finished(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on 2 ranks that share each sequence, never stopped."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    run_ranks(train_on_rank, recipe_of(small_corpus, run_dir), world_size=2)
    return run_dir


def test_a_run_leaves_what_it_promises(finished):
    steps, evaluations = metrics(finished, "step"), metrics(finished, "evaluation")
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["step"] for row in evaluations] == [0, 3, 6, 8]
    for row in evaluations:
        assert [band["band"] for band in row["bands"]] == [1, 2, 3, 4]
        assert sum(band["num_targets"] for band in row["bands"]) == row["num_targets"]
        mean = sum(band["loss"] * band["num_targets"] for band in row["bands"])
        assert mean / row["num_targets"] == pytest.approx(row["loss"])
    assert evaluations[-1]["loss"] < evaluations[0]["loss"]
    assert steps[0]["gamma"] == 0.0  # a linear curriculum starts at nothing
    asked = [row["drop_rate_asked"] for row in steps]
    assert asked == sorted(asked)
    assert asked[-1] > 0.2
    variance = 0.0
    for row, before in zip(steps, [{"tokens": 0}, *steps], strict=False):
        num_low = math.ceil(0.5 * (row["tokens"] - before["tokens"]))  # and a few more
        variance += num_low * row["gamma"] * (1 - row["gamma"])
    num_dropped, num_asked = (
        sum(row[f"drop_rate_{kind}"] for row in steps) * SEQUENCE_TOKENS * 8
        for kind in ("realised", "asked")
    )
    assert abs(num_dropped - num_asked) < 4 * math.sqrt(variance)  # sampling error
    assert (finished / "recipe.resolved.yaml").exists()
    assert list((finished / "tensorboard").iterdir())
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]


SOURCES: dict[str, dict[str, Any]] = {
    "online_sp_2": {},
    "lagged_dp_2": {
        "train__sequence_parallel_size": 1,
        "dropout__where": "loss",
        "entropy__threshold": "lagged",
    },
    "cache_sp_2": {"entropy__source": "cache"},
    "cache_of_the_corpus_dp_2": {
        "train__sequence_parallel_size": 1,
        "dropout__where": "both",
        "entropy__source": "cache",
        "entropy__scope": "corpus",
        "entropy__cache_keeps": "latest",
    },
}


@pytest.fixture(scope="module")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some twenty samples, so that a run of 8 steps sees each of them several times."""
    folder = tmp_path_factory.mktemp("tiny") / "corpus"
    package = Path(json.__file__).parent
    documents = [(package / name).read_text() for name in ("scanner.py", "tool.py")]
    lines = "\n".join(documents).split("\n\n")
    texts = tuple(folder.parent / f"{number}.txt" for number in range(len(lines)))
    for path, line in zip(texts, lines, strict=True):
        path.write_text(line)
    build(
        BuildOptions(
            inputs=texts,
            out=folder,
            train_tokenizer="bpe",
            train_vocab_size=512,
            val_frac=0.4,
            num_workers=1,
        )
    )
    pack(folder, seq_len=SEQUENCE_TOKENS)
    return folder


@pytest.mark.parametrize("source", SOURCES)
def test_a_stopped_and_resumed_run_has_the_very_same_losses(tiny_corpus, tmp_path, source):
    """And so the same masks: the loss of every step depends on them."""
    changes, reference = {"train__epochs": 4, **SOURCES[source]}, tmp_path / "whole"
    run_ranks(train_on_rank, recipe_of(tiny_corpus, reference, **changes), world_size=2)
    assert metrics(reference, "step")[-1]["epoch"] > 2
    assert metrics(reference, "step")[-1]["drop_rate_realised"] > 0.1
    stopped = tmp_path / "stopped"
    for stop in (2, 5, None):
        stopping = {**changes, "train__stop_after_steps": stop}
        run_ranks(train_on_rank, recipe_of(tiny_corpus, stopped, **stopping), world_size=2)
    assert metrics(stopped, "step") == metrics(reference, "step")
    assert metrics(stopped, "evaluation")[-1] == metrics(reference, "evaluation")[-1]
    if "cache" in source:
        # What the run left behind its last save is of no use to a start from an older one.
        shutil.rmtree(stopped / "checkpoints" / "step-00000008")
        run_ranks(train_on_rank, recipe_of(tiny_corpus, stopped, **changes), world_size=2)
        assert metrics(stopped, "step") == metrics(reference, "step")


def test_rows_after_the_last_checkpoint_are_done_again_the_same(finished, small_corpus, tmp_path):
    """A run killed at step 8 with its newest checkpoint at step 6, or with that one torn."""
    run_dir = tmp_path / "killed"
    shutil.copytree(finished, run_dir)
    newest = run_dir / "checkpoints" / "step-00000008"
    torn = next(newest.glob("zero3/*optim_states.pt"))
    torn.write_bytes(torn.read_bytes()[:-1])
    assert newest_complete(run_dir / "checkpoints").name == "step-00000006"
    recipe = recipe_of(small_corpus, run_dir)
    run_ranks(train_on_rank, recipe, world_size=2)
    assert metrics(run_dir, "step") == metrics(finished, "step")
    assert metrics(run_dir, "evaluation") == metrics(finished, "evaluation")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"optimizer__lr": 0.5}, "optimizer.lr: was 0.01, is 0.5"),
        ({"dropout__quantile": 0.25}, "dropout.quantile: was 0.5, is 0.25"),
        ({"seed": 2}, "seed: was 1234, is 2"),
    ],
)
def test_a_resume_with_other_settings_is_refused(finished, small_corpus, change, expected):
    messages = run_ranks(
        message_of_error, recipe_of(small_corpus, finished, **change), world_size=2
    )
    for message in messages:
        assert expected in message


def train_with_changes(recipe: Recipe, accepted: list[str]) -> None:
    from training.run.run import train

    train(recipe, accepted=accepted)


def test_a_change_that_is_accepted_goes_on(finished, small_corpus, tmp_path):
    run_dir = tmp_path / "changed"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000008")
    changes = {"optimizer__lr": 0.5, "dropout__quantile": 0.25}
    recipe = recipe_of(small_corpus, run_dir, **changes)
    with pytest.raises(AssertionError, match=r"dropout\.quantile: was 0\.5, is 0\.25"):
        run_ranks(train_with_changes, recipe, ["recipe.optimizer"], world_size=2)
    accepted = ["recipe.optimizer.lr", "recipe.dropout.quantile"]
    run_ranks(train_with_changes, recipe, accepted, world_size=2)
    found, before = metrics(run_dir, "step"), metrics(finished, "step")
    assert found[:6] == before[:6]
    assert found[6]["lr"] == pytest.approx(50 * before[6]["lr"])
    # the checkpoint is now one of the changed run
    run_ranks(train_with_changes, recipe, [], world_size=2)


def message_of_error(recipe: Recipe) -> str:
    with pytest.raises(ValueError) as caught:
        train_on_rank(recipe)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "world_size", "expected"),
    [
        ({"train__sequence_parallel_size": 2}, 1, "does not divide the number of processes"),
        ({"data__corpus": "absent"}, 2, "absent"),
        ({"run_dir": "/dev/null/run"}, 2, "run_dir /dev/null/run: Not a directory"),
        ({"resume": "never"}, 2, "holds a run already"),
    ],
)
def test_what_cannot_work_is_refused_on_every_rank(  # more of it in test_refused_*.py
    finished, small_corpus, changes, world_size, expected
):
    changes = {"run_dir": str(finished), **changes}
    recipe = recipe_of(small_corpus, changes.pop("run_dir"), **changes)
    for message in run_ranks(message_of_error, recipe, world_size=world_size, timeout_seconds=60):
        assert expected in message


def test_an_existing_run_is_untouched_by_a_refused_start(finished, small_corpus):
    assert newest_complete(finished / "checkpoints").name == "step-00000008"
    assert len(metrics(finished, "step")) == 8
    recipe = recipe_of(small_corpus, finished)
    assert (finished / "recipe.resolved.yaml").read_text() == dump_recipe(recipe)


@pytest.fixture(scope="module")
def exported(finished: Path) -> Path:
    return Path(training("export", str(finished)).stdout.strip())


def training(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*(launcher or (warm_python(),)), "-m", "training", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=180
    )


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
    recipe = recipe_of(small_corpus, finished, train__sequence_parallel_size=1)
    (found,) = run_ranks(engine_logits, recipe, ids, world_size=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def engine_logits(recipe: Recipe, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the trained weights in the training engine, one row as one document.

    The checkpoint belongs to 2 ranks, so its masters are put into an engine of one.
    """
    import deepspeed

    from training.checkpoints.export import trained_weights
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
        training("export", str(tmp_path))
    assert caught.value.returncode == 2
    assert caught.value.stderr.startswith("error: ")
    assert "is not a run folder" in caught.value.stderr


@pytest.mark.parametrize("content", [b"", b"seed: 1\nseed: 2", b"\xff", b"a: [", b"sede: 1"])
def test_a_recipe_that_a_run_keeps_damaged_is_refused_by_name(tmp_path, content):
    path = tmp_path / "recipe.resolved.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        load_run_recipe(tmp_path)


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
    run_ranks(train_on_rank, recipe_of(small_corpus, run_dir, **changes), world_size=2)
    for row in metrics(run_dir, "evaluation"):
        losses = {bool(band["num_targets"]): band["loss"] for band in row["bands"]}
        assert losses[False] is None
        assert losses[True] > 0


def test_a_resume_without_its_rows_or_on_another_corpus_keeps_or_ends_the_bands(
    corpus_copy, tmp_path
):
    run_dir = tmp_path / "run"

    def train(*accepted: str, stop: int | None) -> dict[str, Any]:
        recipe = recipe_of(corpus_copy, run_dir, train__stop_after_steps=stop)
        run_ranks(train_with_changes, recipe, list(accepted), world_size=2)
        return metrics(run_dir, "evaluation")[-1]

    assert "bands" in train(stop=3)
    (run_dir / "metrics.jsonl").unlink()
    assert "bands" in train(stop=6)
    pack(corpus_copy, seq_len=SEQUENCE_TOKENS, policy="concat", overwrite=True)
    assert "bands" not in train("pack", stop=None)


def test_evaluate_finds_the_losses_of_the_last_evaluation(finished, exported):
    """The export on one process, against the training engine on two that share sequences."""
    training("evaluate", str(finished))
    found = json.loads((finished / "evaluation.json").read_text())
    expected = metrics(finished, "evaluation")[-1]
    assert found["num_targets"] == expected["num_targets"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for band, reference in zip(found["bands"], expected["bands"], strict=True):
        assert band["num_targets"] == reference["num_targets"]
        assert band["loss"] == pytest.approx(reference["loss"], rel=1e-5)


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training"),
    "deepspeed": ("deepspeed.launcher.runner", "--num_gpus=2", "--module", "training"),
    "alone": ("training",),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_trains_the_same_run(finished, small_corpus, tmp_path, launcher):
    run_dir = tmp_path / "run"
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(dump_recipe(recipe_of(small_corpus, run_dir)), encoding="utf-8")
    overrides = ["train.stop_after_steps=2", "evaluation.max_samples=4"]
    if launcher == "alone":
        overrides.append("train.sequence_parallel_size=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    secrets = {"HF_TOKEN": "hf_planted1", "WANDB_API_KEY": "wandb_planted2"}
    done = subprocess.run(
        [warm_python(), "-m", *LAUNCHERS[launcher], "train", str(recipe_file), *overrides],
        cwd=ROOT,
        env=environment | secrets,
        check=True,
        timeout=240,
        capture_output=True,
    )
    written = [path.read_bytes() for path in run_dir.rglob("*") if path.is_file()]
    for text in (done.stdout, done.stderr, *written):
        assert b"_planted" not in text  # tokens of the environment stay there
    assert len(written) > 5
    for found, expected in zip(metrics(run_dir, "step"), metrics(finished, "step"), strict=False):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert len(metrics(run_dir, "step")) == 2


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        # the second where there is no MPI
        (
            "OMPI_COMM_WORLD_SIZE",
            "mpirun has started 2 processes, but (mpi4py sees 1|Python cannot load its MPI)",
        ),
        ("SLURM_STEP_NUM_TASKS", "srun has started 2 processes, but MASTER_ADDR and MASTER_PORT"),
        ("RANK", "RANK is set to 2, but not WORLD_SIZE"),
    ],
)
def test_processes_that_do_not_know_their_ranks_are_refused(finished, tmp_path, variable, told):
    """Each of them would train a run of its own in the same folder."""
    environment = {**os.environ, variable: "2", "DS_ACCELERATOR": "cpu"}
    recipe = finished / "recipe.resolved.yaml"
    started = subprocess.run(
        [warm_python(), "-m", "training", "train", str(recipe), f"run_dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert started.returncode == 2
    assert re.search(f"^error: {told}", started.stderr, re.MULTILINE), started.stderr
    assert not (tmp_path / "run").exists()


def test_mistakes_of_the_command_line_are_told_without_a_traceback(tmp_path):
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text("run_dir: x\ntrian: {}\n", encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        training("train", str(recipe_file))
    assert caught.value.returncode == 2
    assert "did you mean train?" in caught.value.stderr
    assert "Traceback" not in caught.value.stderr


@pytest.mark.parametrize("verb", ["train", "evaluate", "export", "report"])
def test_help_of_every_verb_says_what_it_does(verb):
    assert "usage: python -m training" in training(verb, "--help").stdout


@pytest.mark.parametrize("sp_size", [1, 2])
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
    run_ranks(train_on_rank, recipe_of(small_corpus, run_dir, **changes), world_size=2)
    evaluations = metrics(run_dir, "evaluation")
    # the adapted run starts where the first one ended, within the rounding of bf16
    assert evaluations[0]["loss"] == pytest.approx(
        metrics(finished, "evaluation")[-1]["loss"], rel=2e-3
    )
    assert evaluations[-1]["loss"] < evaluations[0]["loss"]
    folder = training("export", str(run_dir)).stdout.strip()
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_a_resume_in_another_precision_is_refused(finished, small_corpus):
    recipe = recipe_of(small_corpus, finished, deepspeed="ds_configs/zero3.json")
    for message in run_ranks(message_of_error, recipe, world_size=2):
        assert "dtype: was 'torch.float32', is 'torch.bfloat16'" in message


def test_fewer_held_out_samples_have_no_bands_and_are_not_the_runs_own(finished, exported):
    training("evaluate", str(finished))
    own = (finished / "evaluation.json").read_bytes()
    done = training("evaluate", str(finished), "evaluation.max_samples=3")
    assert "bands" not in json.loads(done.stdout)
    told = f"{finished / 'heldout_bands'}: made of other samples; no held-out losses by band"
    assert told in done.stderr.splitlines()
    assert (finished / "evaluation.json").read_bytes() == own
    training("evaluate", str(finished), "evaluation.every_steps=5")
    assert (finished / "evaluation.json").read_bytes() != own  # at least its seconds


def test_an_export_that_the_run_has_left_behind_is_told(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "export", ignore_errors=True)
    older = run_dir / "checkpoints" / "step-00000006"
    training("export", str(run_dir), "--checkpoint", str(older))
    done = training("evaluate", str(run_dir))
    told = f"WARNING: {run_dir}/export is of step 6, the newest checkpoint of step 8"
    assert told in done.stderr
    assert json.loads((run_dir / "evaluation.json").read_text())["step"] == 6
    training("export", str(run_dir))
    done = training("evaluate", str(run_dir))
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
        return recipe_of(small_corpus, run_dir, **changes)

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


def test_other_data_is_evaluated_without_the_bands_of_the_runs_own(
    finished, exported, small_corpus, tmp_path
):
    """And leaves the run's own result as it was."""
    training("evaluate", str(finished))
    own = (finished / "evaluation.json").read_bytes()
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
    shown = json.loads(training("evaluate", str(finished), f"data.corpus={other}").stdout)
    assert shown["corpus"] == str(other)
    assert "bands" not in shown
    assert shown["loss"] > 0
    assert (finished / "evaluation.json").read_bytes() == own


def test_evaluations_that_begin_with_a_resume_have_no_bands(small_corpus, tmp_path):
    run_dir = tmp_path / "run"
    without = {"evaluation": {"every_steps": None}, "train__stop_after_steps": 3}
    run_ranks(train_on_rank, recipe_of(small_corpus, run_dir, **without), world_size=2)
    evaluation = {"every_steps": 4, "max_samples": None}
    for last in (6, None):  # and with the resume after that
        recipe = recipe_of(
            small_corpus, run_dir, evaluation=evaluation, train__stop_after_steps=last
        )
        run_ranks(train_on_rank, recipe, world_size=2)
    rows = metrics(run_dir, "evaluation")
    assert [row["step"] for row in rows] == [4, 6, 8]
    assert all(row["loss"] > 0 and "bands" not in row for row in rows)


def test_whole_epochs_train_every_token_as_often_as_asked(small_corpus, tmp_path):
    from data_prep.shards import open_corpus

    pack = open_corpus(small_corpus).open_pack(SEQUENCE_TOKENS)
    run_dir = tmp_path / "epochs"
    recipe = recipe_of(
        small_corpus,
        run_dir,
        train={
            "global_batch_tokens": 400 * SEQUENCE_TOKENS,
            "epochs": 2,
            "micro_batch_samples": 200,
        },
        evaluation__every_steps=None,
    )
    run_ranks(train_on_rank, recipe, world_size=2)
    last = metrics(run_dir, "step")[-1]
    assert last["tokens"] == 2 * pack.num_tokens("train")
    assert last["epoch"] == 2.0
