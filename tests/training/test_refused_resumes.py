"""What a run must find as it was: a resume with anything else is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.packing.pack import pack
from data_prep.shards import open_corpus
from tests.distributed import run_ranks
from tests.scores import write_scores
from tests.training.layouts import tiny_recipe
from tests.training.refusals import (
    CPU,
    build_text,
    first_shard,
    flip,
    message_without_a_model,
    refused,
)
from tests.training.short_runs import SEQUENCE_TOKENS, short_recipe, train_on_rank
from tests.warm_python import warm_python
from training.checkpoints.identity import refuse_differences, run_identity
from training.config.load import dump_recipe
from training.ranks.dist import Layout
from training.run.start import check_start

ROOT = Path(__file__).parents[2]

# --- a run that is gone on with ---


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"seed": 2}, "seed: was 1234, is 2"),
    ({"optimizer__lr": 0.5}, "optimizer.lr: was 0.01, is 0.5"),
    ({"optimizer__weight_decay": 0.0}, "optimizer.weight_decay: was 0.1, is 0.0"),
    ({"train__epochs": 7}, "train.epochs: was 100.0, is 7.0"),
    ({"train__max_steps": 7}, "train.max_steps: was 8, is 7"),
    ({"train__global_batch_tokens": 1024}, "train.global_batch_tokens: was 512, is 1024"),
    ({"train__gradient_clipping": 2.0}, "train.gradient_clipping: was 1.0, is 2.0"),
    ({"train__z_loss": 1e-4}, "train.z_loss: was 0.0, is 0.0001"),
    ({"schedule__kind": "wsd"}, "schedule.kind: was 'cosine', is 'wsd'"),
    ({"regulariser": "none"}, "regularisers: was ['entrodrop'], is ['none']"),
    ({"entropy__source": "cache"}, "entropy.source: was 'online', is 'cache'"),
    ({"dropout__quantile": 0.25}, "dropout.quantile: was 0.5, is 0.25"),
    ({"dropout__curriculum__kind": "cosine"}, "curriculum.kind: was 'linear', is 'cosine'"),
    ({"model__config__hidden_size": 32}, "model.config.hidden_size: was 16, is 32"),
    ({"model__config__num_hidden_layers": 2}, "num_hidden_layers: was 1, is 2"),
    ({"data__mixture": {"main": {"epochs": 2}}}, "data.mixture.main.epochs: was None, is 2.0"),
    ({"evaluation__max_samples": 5}, "evaluation.max_samples: was 6, is 5"),
    ({"deepspeed": "ds_configs/zero3.json"}, "dtype: was 'torch.float32', is 'torch.bfloat16'"),
]
FREE: list[dict[str, Any]] = [
    {"run_dir": "elsewhere"},
    {"data__verify": "sizes"},
    {"train__sequence_parallel_size": 1},
    {"train__micro_batch_samples": 2},
    {"train__stop_after_steps": 3},
    {"evaluation__every_steps": 5},
    {"checkpoint__every_steps": 5},
    {"guard__on_spike": "stop"},
    {"watchdog__seconds": 5},
    {"model__activation_checkpointing": True},
]


def identity(corpus: Path, **changes: Any) -> dict[str, Any]:
    changes = {"run_dir": "unused", **changes}
    recipe = short_recipe(corpus, Path(changes.pop("run_dir")), **changes)
    start = check_start(recipe, Layout(0, 2, recipe.train.sequence_parallel_size, CPU))
    found = run_identity(recipe, start.data.pack, dtype=start.dtype, scores=start.data.scores)
    kept: dict[str, Any] = json.loads(json.dumps(found))  # as a checkpoint gives it back
    return kept


def resume(saved: dict[str, Any], current: dict[str, Any]) -> None:
    refuse_differences(Path("checkpoint"), saved, current, accepted=())


@pytest.mark.parametrize(("changes", "told"), CHANGES)
def test_a_resume_with_a_changed_recipe_is_refused(small_corpus, changes, told):
    message = refused(lambda: resume(identity(small_corpus), identity(small_corpus, **changes)))
    assert told in message
    assert "--accept-changes " in message


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"rank": 8}, "recipe.adapter.rank: was 4, is 8"),
        ({"rank": 4, "kind": "dora"}, "recipe.adapter.kind: was 'lora', is 'dora'"),
        ({"rank": 4, "targets": ["q_proj"]}, "targets: was 'all-linear', is ['q_proj']"),
        (None, "recipe.adapter.rank: was 4, is None"),
        ({"rank": 4, "alpha": 8}, None),
    ],
)
def test_another_adapter_cannot_be_accepted_but_another_alpha(adapter, told):
    def of(changed: dict[str, Any] | None) -> dict[str, Any]:
        recipe = tiny_recipe(model={"pretrained": "org/base"}, adapter=changed)
        return {
            "recipe": {"regularisers": [], "adapter": recipe.adapter and asdict(recipe.adapter)}
        }

    def accept() -> None:
        refuse_differences(
            Path("checkpoint"), of({"rank": 4}), of(adapter), accepted=["recipe.adapter"]
        )

    if told is None:
        accept()
        return
    message = refused(accept)
    assert told in message and message.endswith("another adapter cannot be resumed from")
    assert "--accept-changes" not in message


@pytest.mark.parametrize("changes", FREE)
def test_a_resume_may_change_what_decides_nothing(small_corpus, changes):
    resume(identity(small_corpus), identity(small_corpus, **changes))


def test_a_checkpoint_of_a_version_that_compared_memory_keys_resumes(small_corpus):
    before = identity(small_corpus)
    before["recipe"]["model"]["activation_checkpointing"] = True
    resume(before, identity(small_corpus))


@pytest.mark.parametrize(
    ("what", "changes"),
    [("the split", {"val_frac": 0.8}), ("the tokenizer", {"train_vocab_size": 500})],
)
def test_a_resume_on_a_corpus_that_was_built_otherwise_is_refused(tmp_path, what, changes):
    folder = build_text(tmp_path / "corpus")
    before = identity(folder)
    shutil.rmtree(folder)
    build_text(folder)
    resume(before, identity(folder))  # the same once more
    shutil.rmtree(folder)
    build_text(folder, **changes)
    message = refused(lambda: resume(before, identity(folder)))
    assert "pack (fingerprint of the packed corpus: token ids, tokenizer," in message


def test_a_resume_with_other_scores_or_another_pack_is_refused(scored_copy):
    before = identity(scored_copy, entropy__source="reference")
    write_scores(
        open_corpus(scored_copy),
        lambda shard: np.full(shard.num_tokens, 2.0),
        name="reference",
        measure="shannon",
        model="a-model",
        seq_len=SEQUENCE_TOKENS,
    )
    pack(scored_copy, seq_len=SEQUENCE_TOKENS, policy="concat", overwrite=True)
    message = refused(lambda: resume(before, identity(scored_copy, entropy__source="reference")))
    assert "scores (fingerprint of entropy.scores): was" in message
    assert "pack (fingerprint of the packed corpus" in message


# --- the command itself: one error, no traceback, nothing left behind ---


def train(recipe: Path | str, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        [warm_python(), "-m", "training", "train", str(recipe), *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def assert_one_error(done: subprocess.CompletedProcess[str], told: str) -> None:
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert told in done.stderr


def test_the_command_says_one_error_and_leaves_nothing(corpus_copy, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    assert_one_error(train(recipe), f"recipe {recipe}: No such file")
    recipe.write_bytes(b"? [a]\n: b\n")
    assert_one_error(train(recipe), "expected a name before the colon")
    text = dump_recipe(short_recipe(corpus_copy, tmp_path / "run"))
    recipe.write_text(text)
    alone = "train.sequence_parallel_size=1"
    assert_one_error(train(recipe), "2 does not divide the number of processes 1")
    assert_one_error(train(recipe, alone, "model.config.hidden_size=big"), "'hidden_size' expected")
    flip(first_shard(corpus_copy, "tokens"))
    assert_one_error(train(recipe, alone), "damaged: expected sha256")
    assert not (tmp_path / "run").exists()


def test_a_changed_resume_is_refused_before_a_model_is_built(small_corpus, tmp_path):
    recipe = short_recipe(
        small_corpus,
        tmp_path / "run",
        train__sequence_parallel_size=1,
        train__max_steps=2,
        train__stop_after_steps=1,
        evaluation__every_steps=None,
    )
    run_ranks(train_on_rank, recipe, world_size=1)
    changed = short_recipe(
        small_corpus,
        tmp_path / "run",
        train__sequence_parallel_size=1,
        train__max_steps=2,
        evaluation__every_steps=None,
        optimizer__lr=0.5,
    )
    (message,) = run_ranks(message_without_a_model, changed, world_size=1)
    assert "optimizer.lr: was 0.01, is 0.5" in message


def test_a_run_under_an_old_name_of_a_key_resumes(small_corpus):
    saved = identity(small_corpus, regularisers=["entrodrop", "neftune"])
    del saved["recipe"]["regularisers"]
    saved["recipe"] |= {"regulariser": "neftune", "beside": "entrodrop"}  # in another order
    resume(saved, identity(small_corpus, extra_regulariser="neftune"))


def test_a_run_from_before_a_key_resumes_with_its_default_alone(small_corpus):
    saved = identity(small_corpus)
    del saved["recipe"]["dropout"]["sample_rates"], saved["recipe"]["baseline"]["mlp_dropout"]
    resume(saved, identity(small_corpus))
    with pytest.raises(ValueError, match=r"dropout\.sample_rates: was 'equal', is 'uniform'"):
        resume(saved, identity(small_corpus, dropout__sample_rates="uniform"))
