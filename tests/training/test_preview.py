"""A preview drops what the run drops, given the same entropies."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shards import open_corpus
from tests.scores import write_scores
from training.__main__ import main
from training.commands.preview import number_list
from training.config.load import parse_recipe
from training.config.recipe import Recipe
from training.data.sample_order import SampleOrder
from training.data.stream import SampleStream
from training.entrodrop.counter_rng import DROP_STREAM, token_keys, uniform_from_keys
from training.ranks.dist import Layout
from training.run.plan import choose_mixture
from training.run.preview import write_preview

SEQ_LEN = 64


@pytest.fixture
def recipe(small_corpus: Path, tmp_path: Path) -> Recipe:
    folder = shutil.copytree(small_corpus, tmp_path / "corpus")
    rng = np.random.default_rng(0)
    write_scores(
        open_corpus(folder),
        lambda shard: rng.gamma(1.0, 1.0, shard.num_tokens),
        name="base",
        measure="shannon",
        model="random",
        seq_len=SEQ_LEN,
    )
    return parse_recipe(
        {
            "run_dir": "unused",
            "model": {"config": {"model_type": "qwen3"}},
            "data": {"corpus": str(folder), "sequence_tokens": SEQ_LEN},
            "train": {"global_batch_tokens": 4 * SEQ_LEN, "epochs": 3, "micro_batch_samples": 2},
            "dropout": {"quantile": 0.3, "max_rate": 0.8, "curriculum": {"kind": "linear"}},
        }
    )


def test_the_set_is_that_of_the_step(recipe: Recipe, tmp_path: Path) -> None:
    """By a plain sort over the step's tokens and the draw of each, without the engine's code."""
    corpus = open_corpus(recipe.data.corpus)
    index, scores = corpus.open_pack(SEQ_LEN), corpus.open_scores("base")
    out = tmp_path / "deep" / "drops.json"
    write_preview(recipe, epoch=1, samples=[0, 5], scores="base", out=out)
    found = json.loads(out.read_text())
    assert found["pack"] == index.fingerprint
    order = SampleOrder(choose_mixture(recipe, index), seed=recipe.seed)
    num_samples = index.num_samples()
    for shown in found["samples"]:
        number = next(
            n for n in range(num_samples, 2 * num_samples)
            if order.sample_at(n)[0] == shown["sample"]
        )  # fmt: skip
        step = number // 4
        assert shown["step"] == step
        assert shown["gamma"] == pytest.approx(0.8 * 4 * step / (3 * num_samples))
        tokens = []
        for place in range(4 * step, min(4 * step + 4, 3 * num_samples)):
            sample, times_seen = order.sample_at(place)
            entropies = scores.sample(index, sample)
            for position in np.flatnonzero(np.isfinite(entropies)).tolist():
                key = (times_seen * num_samples + sample) * SEQ_LEN + position
                tokens.append((float(entropies[position]), key, sample, position))
        tokens.sort()
        low = tokens[: math.ceil(0.3 * len(tokens))]
        if low[-1][0] == tokens[len(low)][0]:
            pytest.fail("a tie at the threshold: choose other scores for this test")
        assert shown["threshold_nats"] == pytest.approx(low[-1][0])
        keys = token_keys(
            torch.tensor([token[1] for token in low]), seed=recipe.seed, stream=DROP_STREAM
        )
        is_drawn = (uniform_from_keys(keys) < shown["gamma"]).tolist()
        drawn = [token for token, draws in zip(low, is_drawn, strict=True) if draws]
        expected = sorted(token[3] for token in drawn if token[2] == shown["sample"])
        assert shown["dropped"] == expected
        assert shown["dropped"]


def test_a_step_of_the_run_holds_the_sample(recipe: Recipe, tmp_path: Path) -> None:
    index = open_corpus(recipe.data.corpus).open_pack(SEQ_LEN)
    out = write_preview(recipe, epoch=0, samples=[3], scores="base", out=tmp_path / "d.json")
    (shown,) = json.loads(out.read_text())["samples"]
    stream = SampleStream(
        pack=index,
        split="train",
        layout=Layout(0, 1, 1, torch.device("cpu")),
        total_samples=3 * index.num_samples(),
        samples_per_step=4,
        micro_batch_samples=2,
        order=SampleOrder(choose_mixture(recipe, index), seed=recipe.seed),
    )
    assert 3 in [s for batch in stream.step(shown["step"]) for s in batch.sample_ids]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "--epoch 3: the run has epochs 0 to 2"),
        ({"samples": [10**6]}, "--samples 1000000: the pack has samples 0 to"),
        ({"scores": "bass"}, "no scores 'bass'; there are: base"),
    ],
)
def test_what_is_not_there_is_said(recipe: Recipe, tmp_path: Path, change, message) -> None:
    arguments = {"epoch": 0, "samples": [0], "scores": "base"} | change
    with pytest.raises(ValueError, match=message):
        write_preview(recipe, out=tmp_path / "d.json", **arguments)
    assert not (tmp_path / "d.json").exists()


def test_lists_of_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert number_list("0-3,17") == [0, 1, 2, 3, 17]
    with pytest.raises(SystemExit):
        main(["preview", "r.yaml", "--scores", "a", "--samples", "x", "--out", "o"])
    assert "'x' is not of the form 0-3,17" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"regulariser": "random_token_dropout"}, "regulariser is random_token_dropout; preview"),
        ({"entropy": {"source": "cache", "scope": "corpus"}}, "entropy.scope is corpus; preview"),
        ({"entropy": {"measure": "nll"}}, "entropy.measure is nll; these scores are shannon"),
        ({"dropout": {"guidance": 0.5}}, "dropout.guidance is 0.5; preview"),
        ({"dropout": {"side": "high"}}, "dropout.side is high; preview"),
    ],
)
def test_what_drops_by_other_rules_is_not_shown(
    recipe: Recipe, tmp_path: Path, change: dict, told: str
) -> None:
    other = parse_recipe(
        {
            "run_dir": "unused",
            "model": {"config": {"model_type": "qwen3"}},
            "data": {"corpus": recipe.data.corpus, "sequence_tokens": SEQ_LEN},
            "train": {"global_batch_tokens": 4 * SEQ_LEN},
            **change,
        }
    )
    with pytest.raises(ValueError, match=told):
        write_preview(other, epoch=0, samples=[0], scores="base", out=tmp_path / "drops.json")
    assert not (tmp_path / "drops.json").exists()
