"""A teacher that was run beforehand: at the right tokens, over a resume, or refused by name."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.shards import Corpus, open_corpus
from launch.planner.corpus import read_size
from tests.distributed import run_ranks
from tests.scores import made_up_top_k, write_scores, write_top_k
from tests.training.refusals import CPU
from tests.training.short_runs import message_of_error, metrics, short_recipe, train_on_rank
from training.config.recipe import Recipe
from training.data.joined_pack import join
from training.data.stream import IGNORE, SampleStream
from training.ranks.dist import Layout
from training.run.run_data import RunData
from training.run.score import ScoreOptions, score_corpus
from training.run.teacher import StoredTeacher, join_predictions

TAUGHT: dict[str, Any] = {
    "regulariser": "none",
    "teacher": {"kind": "scores", "scores": "base", "weight": 0.5},
    "train__max_steps": 2,
    "evaluation": {"every_steps": None},
}


@pytest.fixture
def corpus(rows_corpus: Path, tmp_path: Path) -> Corpus:
    return open_corpus(shutil.copytree(rows_corpus, tmp_path / "corpus"))


def recipe_of(corpus: Corpus, run_dir: Path, **changes: Any) -> Recipe:
    return short_recipe(corpus.folder, run_dir, **TAUGHT | changes)


def trained(recipe: Recipe) -> list[dict[str, Any]]:
    run_ranks(train_on_rank, recipe, world_size=2)
    return metrics(Path(recipe.run_dir), "step")


def told_of(recipe: Recipe) -> str:
    with redirect_stdout(io.StringIO()) as output:
        train_on_rank(recipe)
    return output.getvalue()


def test_the_model_that_is_trained_teaches_itself_its_own_predictions_and_a_resume_goes_on(
    corpus, wide_model, tmp_path
):
    options = ScoreOptions(
        corpus=corpus.folder,
        model=str(wide_model),
        sequence_tokens=64,
        name="base",
        top_k=512,
        micro_batch_samples=8,
        deepspeed="ds_configs/zero3_fp32.json",
    )
    run_ranks(score_corpus, options, world_size=1)
    base: dict[str, Any] = {"model": {"pretrained": str(wide_model)}}
    told = run_ranks(told_of, recipe_of(corpus, tmp_path / "whole", **base), world_size=2)
    assert "\n  teacher scores           " in told[0]
    whole = metrics(tmp_path / "whole", "step")
    # of all ids kept, before the first step, it is the entropy of what both predict
    expected = (whole[0]["loss"] + whole[0]["mean_entropy_nats"]) / 2
    assert whole[0]["objective"] == pytest.approx(expected, rel=1e-4)
    (facts,) = metrics(tmp_path / "whole", "run")
    assert facts["taught_by"] == f"{wide_model}, 512 likeliest tokens"
    assert abs(whole[0]["loss"] - whole[0]["mean_entropy_nats"]) > 0.5

    run_dir = tmp_path / "run"
    trained(recipe_of(corpus, run_dir, train__stop_after_steps=1, **base))
    kept = shutil.copytree(run_dir, tmp_path / "kept")
    assert trained(recipe_of(corpus, run_dir, **base)) == whole

    write_top_k(corpus, k=4)
    told = run_ranks(message_of_error, recipe_of(corpus, kept, **base), world_size=2)
    assert told[0] == told[1]
    assert "others.teacher_scores (fingerprint of teacher.scores): was" in told[0]


def alone(corpus: Corpus, **changes: Any) -> Recipe:
    return recipe_of(corpus, Path("unused"), world_size=1, **changes)


@pytest.mark.parametrize("on", ["all", "domain", "replay"])
@pytest.mark.parametrize("sp_rank", [0, 1])
def test_a_token_is_taught_what_was_predicted_of_it(corpus, tmp_path, on, sp_rank):
    """Also behind the end of a sequence shard, and of replay by its own corpus's scores."""
    general = open_corpus(shutil.copytree(corpus.folder, tmp_path / "general"))
    for each in (corpus, general):
        write_top_k(each, k=4)
    replay = {"corpus": str(general.folder), "share": 0.5}
    teacher = {"kind": "scores", "scores": "base", "weight": 0.25, "on": on}
    recipe = alone(corpus, replay=replay, teacher=teacher)
    data = RunData.open(recipe)
    pack, num_own = join(data.pack, data.replay), data.pack.num_samples()
    layout, predictions = (
        Layout(sp_rank, 2, 2, CPU),
        join_predictions(data.predictions, data.replay),
    )
    assert recipe.teacher
    assert predictions
    stored = StoredTeacher(layout, pack, predictions, recipe.teacher, num_domain_samples=num_own)
    stream = SampleStream(
        pack=pack,
        split="train",
        layout=layout,
        total_samples=2 * num_own - 1,
        samples_per_step=2 * num_own,
        micro_batch_samples=2 * num_own,
    )
    (batch,) = stream.step(0)
    view, own = stored.view(batch, 0), slice(32 * sp_rank, 32 * sp_rank + 32)
    for row, sample in enumerate(batch.sample_ids):
        is_target = batch.targets_BS[row] != IGNORE
        counts = on == "all" or (on == "replay") == (sample >= num_own)
        assert view.weights_BS[row][is_target].tolist() == [0.25 * counts] * int(is_target.sum())
        if counts and sample >= 0:
            made_up = made_up_top_k(corpus, sample % num_own, "train", k=4, count=64)
            for found, expected in zip(view.top_k_BS, made_up, strict=True):
                assert torch.equal(
                    found[row][is_target], torch.from_numpy(expected[own])[is_target]
                )


def refusal(recipe: Recipe) -> str:
    with pytest.raises(ValueError) as caught:
        RunData.open(recipe)
    return str(caught.value)


def test_scores_that_do_not_teach_are_refused(corpus, tmp_path):
    general = open_corpus(shutil.copytree(corpus.folder, tmp_path / "general"))
    replay = {"corpus": str(general.folder), "share": 0.5}
    assert "teacher.scores: " in (said := refusal(alone(corpus)))
    assert "no scores 'base'; there are: none" in said
    ones = {"name": "base", "seq_len": 64}
    write_scores(corpus, lambda shard: np.ones(shard.num_tokens), **ones)  # type: ignore[arg-type]
    assert "scores-base holds no likeliest tokens; make new ones with" in refusal(alone(corpus))
    shutil.rmtree(corpus.folder / "scores-base")
    scores = write_top_k(corpus, k=4)
    data = RunData.open(alone(corpus))
    names = {
        folder / file.name for folder, file in data.files(alone(corpus)) if ".topk" in file.name
    }
    assert names == {scores.folder / file.name for _, file in scores.top_k_files(("train",))}
    size = read_size(alone(corpus))
    on_disk = sum(path.stat().st_size for path in scores.folder.glob("*[!n]"))  # but scores.json
    assert size
    assert (size.top_k, size.prediction_bytes) == (4, on_disk)
    assert f"{general.folder}: no scores 'base'" in refusal(alone(corpus, replay=replay))
    only_own = {**TAUGHT["teacher"], "on": "domain"}
    RunData.open(alone(corpus, replay=replay, teacher=only_own))
    write_top_k(general, k=3)
    said = refusal(alone(corpus, replay=replay))
    assert "keeps the 4 likeliest tokens," in said
    assert "scores-base 3: make both with the same --top-k" in said


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({"kind": "scores"}, "teacher.kind: scores needs teacher.scores, the name of stored"),
        ({"kind": "base", "scores": "x"}, "teacher.scores 'x' is read with teacher.kind: scores"),
    ],
)
def test_a_recipe_names_stored_predictions_where_it_reads_them(tmp_path, teacher, told):
    with pytest.raises(ValueError, match=told):
        short_recipe(tmp_path, tmp_path, teacher=teacher)
