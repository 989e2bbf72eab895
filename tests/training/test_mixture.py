"""A recipe's mixture: whole samples of each domain, tokens that follow, mistakes named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.manifest import PackWeight
from data_prep.packing.pack import pack
from data_prep.shards import PackIndex, open_corpus
from training.config.load import parse_recipe
from training.config.recipe import Recipe
from training.data.sample_order import SampleOrder
from training.data.stream import SampleStream
from training.ranks.dist import Layout
from training.run.plan import choose_mixture, derive_plan

ALONE = Layout(rank=0, world_size=1, sp_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of Python's own source; the pack says that an epoch takes the first twice."""
    import email
    import json

    folder = tmp_path_factory.mktemp("mixed") / "corpus"
    build(
        BuildOptions(
            inputs=(f"small={Path(json.__file__).parent}", f"large={Path(email.__file__).parent}"),
            out=folder,
            train_tokenizer="bpe",
            train_vocab_size=400,
            val_frac=0.1,
            num_workers=1,
        )
    )
    pack(folder, seq_len=128, weights={"small": PackWeight(epochs=2)})
    return folder


def make_recipe(folder: Path, mixture: object) -> Recipe:
    return parse_recipe(
        {
            "run_dir": "unused",
            "model": {"config": {"model_type": "qwen3"}},
            "data": {"corpus": str(folder), "sequence_tokens": 128, "mixture": mixture},
            "train": {"global_batch_tokens": 4 * 128, "epochs": 2},
        }
    )


def make_stream(recipe: Recipe, index: PackIndex) -> SampleStream:
    mixture = choose_mixture(recipe, index)
    plan = derive_plan(recipe, index, mixture, ALONE)
    return SampleStream(
        pack=index,
        split="train",
        layout=ALONE,
        total_samples=plan.total_samples,
        samples_per_step=plan.samples_per_step,
        micro_batch_samples=1,
        order=SampleOrder(mixture, seed=recipe.seed),
    )


@pytest.mark.parametrize(
    ("mixture", "small_epochs"),
    [(None, 2), ({"small": {"epochs": 3}}, 3), ({"small": {"epochs": 0.5}}, 0.5), ({}, 1)],
)
def test_a_run_goes_through_each_domain_as_often_as_asked(mixed, mixture, small_epochs):
    index = open_corpus(mixed).open_pack(128)
    recipe = make_recipe(mixed, mixture)
    small, large = choose_mixture(recipe, index)
    assert small.samples_per_epoch == round(small_epochs * len(small.samples))
    stream = make_stream(recipe, index)
    tokens: Counter[str] = Counter()
    seen: Counter[int] = Counter()
    for step in range(stream.num_steps):
        for batch in stream.step(step):
            (sample,) = batch.sample_ids
            if sample >= 0:
                seen[sample] += 1
                tokens["small" if sample in small.samples else "large"] += batch.num_tokens
    plan = derive_plan(recipe, index, (small, large), ALONE)
    for share in (small, large):
        times = [seen[sample] for sample in share.samples]
        assert sum(times) == 2 * share.samples_per_epoch
        assert max(times) - min(times) <= 1
    if small_epochs >= 1:  # whole passes: tokens are exact
        assert tokens == {"small": 2 * small.tokens_per_epoch, "large": 2 * large.tokens_per_epoch}
        assert plan.planned_tokens == sum(tokens.values())


def test_a_proportion_is_a_share_of_tokens(mixed):
    index = open_corpus(mixed).open_pack(128)
    small, large = choose_mixture(make_recipe(mixed, {"small": {"proportion": 0.4}}), index)
    share = small.tokens_per_epoch / (small.tokens_per_epoch + large.tokens_per_epoch)
    assert share == pytest.approx(0.4, abs=0.005)
    assert large.epochs == 1


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"smal": {"epochs": 1}}, r"data\.mixture: no domain 'smal'.*did you mean small\?"),
        (
            {"small": {"epochs": 0}, "large": {"epochs": 0}},
            r"data\.mixture: the weights leave nothing",
        ),
    ],
)
def test_a_mixture_that_does_not_fit_the_corpus_is_refused(mixed, mixture, message):
    with pytest.raises(ValueError, match=message):
        choose_mixture(make_recipe(mixed, mixture), open_corpus(mixed).open_pack(128))


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (
            {"small": {"epoch": 1}},
            r"data\.mixture\.small\.epoch: unknown key; did you mean data\.mixture\.small\.epochs",
        ),
        ({"small": {"epochs": 1, "proportion": 0.5}}, "set exactly one of epochs and proportion"),
        ({"small": {"proportion": 1.5}}, r"data\.mixture\.small\.proportion: .*\(is 1\.5\)"),
        ({"small": 3}, r"data\.mixture\.small"),
    ],
)
def test_a_mixture_that_is_none_is_refused_with_the_recipe(mixed, mixture, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(mixed, mixture)
