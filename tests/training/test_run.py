"""A whole run on real text: what it leaves, and that it is the same when stopped and resumed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.short_runs import (
    SEQUENCE_TOKENS,
    message_of_error,
    metrics,
    saving_recipe,
    train_on_rank,
    train_with_changes,
)
from training.checkpoints.manifest import newest_complete
from training.config.load import dump_recipe


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


# a resume of online_sp_2 is also that of test_stopping.py
@pytest.mark.parametrize("source", SOURCES if WHOLE else list(SOURCES)[1:])
def test_a_stopped_and_resumed_run_has_the_very_same_losses(tiny_corpus, tmp_path, source):
    """And so the same masks: the loss of every step depends on them."""
    changes, reference = {"train__epochs": 4, **SOURCES[source]}, tmp_path / "whole"
    run_ranks(train_on_rank, saving_recipe(tiny_corpus, reference, **changes), world_size=2)
    assert metrics(reference, "step")[-1]["epoch"] > 2
    assert metrics(reference, "step")[-1]["drop_rate_realised"] > 0.1
    stopped = tmp_path / "stopped"
    for stop in (2, 5, None) if "lagged" in source or WHOLE else (5, None):
        stopping = {**changes, "train__stop_after_steps": stop}
        run_ranks(train_on_rank, saving_recipe(tiny_corpus, stopped, **stopping), world_size=2)
    assert metrics(stopped, "step") == metrics(reference, "step")
    assert metrics(stopped, "evaluation")[-1] == metrics(reference, "evaluation")[-1]
    if "cache" in source:
        # What the run left behind its last save is of no use to a start from an older one.
        shutil.rmtree(stopped / "checkpoints" / "step-00000008")
        run_ranks(train_on_rank, saving_recipe(tiny_corpus, stopped, **changes), world_size=2)
        assert metrics(stopped, "step") == metrics(reference, "step")


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["zero3", "zero1"])
def test_a_run_on_a_gpu_goes_on_with_the_very_same_losses(small_corpus, tmp_path, stage):
    """In bf16, with flash attention: stopped between two saves in the background."""
    changes = {"deepspeed": f"ds_configs/{stage}.json", "determinism": "strict", "world_size": 1}
    changes["train__sequence_parallel_size"] = 1
    rows = []
    for name, stops in (("whole", [None]), ("stopped", [5, None])):
        for stop in stops:
            asked = {**changes, "train__stop_after_steps": stop}
            recipe = saving_recipe(small_corpus, tmp_path / name, **asked)
            run_ranks(train_on_rank, recipe, world_size=1, gpus=True)
        keys = ("step", "loss", "grad_norm", "drop_rate_realised")
        steps = [[row[key] for key in keys] for row in metrics(tmp_path / name, "step")]
        rows.append([steps, metrics(tmp_path / name, "evaluation")[-1]["loss"]])
    assert rows[1] == rows[0]
    assert [step for step, *_ in rows[0][0]] == list(range(1, 9))
    assert rows[0][0][-1][-1] > 0.1


def test_rows_after_the_last_checkpoint_are_done_again_the_same(finished, small_corpus, tmp_path):
    """A run killed at step 8 with its newest checkpoint at step 6, or with that one torn."""
    run_dir = tmp_path / "killed"
    shutil.copytree(finished, run_dir)
    newest = run_dir / "checkpoints" / "step-00000008"
    torn = next(newest.glob("zero3/*optim_states.pt"))
    torn.write_bytes(torn.read_bytes()[:-1])
    assert newest_complete(run_dir / "checkpoints").name == "step-00000006"
    recipe = saving_recipe(small_corpus, run_dir)
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
        message_of_error, saving_recipe(small_corpus, finished, **change), world_size=2
    )
    for message in messages:
        assert expected in message


def test_a_change_that_is_accepted_goes_on(finished, small_corpus, tmp_path):
    run_dir = tmp_path / "changed"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000008")
    changes = {"optimizer__lr": 0.5, "dropout__quantile": 0.25}
    recipe = saving_recipe(small_corpus, run_dir, **changes)
    with pytest.raises(AssertionError, match=r"dropout\.quantile: was 0\.5, is 0\.25"):
        run_ranks(train_with_changes, recipe, ["recipe.optimizer"], world_size=2)
    accepted = ["recipe.optimizer.lr", "recipe.dropout.quantile"]
    run_ranks(train_with_changes, recipe, accepted, world_size=2)
    found, before = metrics(run_dir, "step"), metrics(finished, "step")
    assert found[:6] == before[:6]
    assert found[6]["lr"] == pytest.approx(50 * before[6]["lr"])
    # the checkpoint is now one of the changed run
    run_ranks(train_with_changes, recipe, [], world_size=2)


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
    recipe = saving_recipe(small_corpus, changes.pop("run_dir"), **changes)
    for message in run_ranks(message_of_error, recipe, world_size=world_size, timeout_seconds=60):
        assert expected in message


def test_an_existing_run_is_untouched_by_a_refused_start(finished, small_corpus):
    assert newest_complete(finished / "checkpoints").name == "step-00000008"
    assert len(metrics(finished, "step")) == 8
    recipe = saving_recipe(small_corpus, finished)
    assert (finished / "recipe.resolved.yaml").read_text() == dump_recipe(recipe)


def test_a_resume_in_another_precision_is_refused(finished, small_corpus):
    recipe = saving_recipe(small_corpus, finished, deepspeed="ds_configs/zero3.json")
    for message in run_ranks(message_of_error, recipe, world_size=2):
        assert "dtype: was 'torch.float32', is 'torch.bfloat16'" in message


def test_whole_epochs_train_every_token_as_often_as_asked(small_corpus, tmp_path):
    from data_prep.shards import open_corpus

    pack = open_corpus(small_corpus).open_pack(SEQUENCE_TOKENS)
    run_dir = tmp_path / "epochs"
    recipe = saving_recipe(
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
