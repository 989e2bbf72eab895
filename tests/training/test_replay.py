"""Replay: general text among the domain's samples, each seen once, the domain's as without it."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from data_prep.shards import open_corpus
from launch.planner.corpus import read_size
from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.scores import write_scores
from tests.training.refusals import CPU
from tests.training.short_runs import SEQUENCE_TOKENS, metrics, short_recipe, train_on_rank
from training.config.recipe import Recipe
from training.data.joined_pack import join
from training.data.sample_order import SampleOrder
from training.data.stream import SampleStream
from training.ranks.dist import Layout
from training.run.start import Start, check_start

ALONE = Layout(0, 1, 1, CPU)


def recipe_of(corpus: Path, general: Path, run_dir: Path, **changes: Any) -> Recipe:
    replay = {"corpus": str(general), "share": 0.25}
    return short_recipe(corpus, run_dir, **{"replay": replay, **changes})


def alone(corpus: Path, general: Path, **changes: Any) -> Recipe:
    """For a start without processes: two epochs in steps of 8 samples."""
    train = {"global_batch_tokens": 8 * SEQUENCE_TOKENS, "epochs": 2, "micro_batch_samples": 1}
    return recipe_of(corpus, general, Path("unused"), **{"train": train, **changes})


def stream_of(start: Start, recipe: Recipe) -> SampleStream:
    return SampleStream(
        pack=join(start.data.pack, start.data.replay),
        split="train",
        layout=ALONE,
        total_samples=start.plan.total_samples,
        samples_per_step=start.plan.samples_per_step,
        micro_batch_samples=1,
        order=SampleOrder(start.mixture, seed=recipe.seed),
    )


def seen_in(
    stream: SampleStream, *, num_own: int
) -> tuple[Counter[int], Counter[bool], list[set[int]]]:
    """How often each sample, how many tokens by whether they are replay's, and what by epoch."""
    seen: Counter[int] = Counter()
    tokens: Counter[bool] = Counter()
    epochs: list[set[int]] = [set(), set()]
    for batch in (batch for step in range(stream.num_steps) for batch in stream.step(step)):
        (sample,) = batch.sample_ids
        if sample >= 0:
            seen[sample] += 1
            tokens[sample >= num_own] += batch.num_tokens
            epochs[batch.epochs[0]].add(sample)
    return seen, tokens, epochs


@pytest.mark.parametrize(("share", "repeats"), [(0.25, False), (0.1, False), (0.6, True)])
def test_the_domain_is_seen_as_often_as_without_replay_and_replay_once(
    small_corpus, general_corpus, share, repeats
):
    replay = {"corpus": str(general_corpus), "share": share, "repeats": repeats}
    recipe = alone(small_corpus, general_corpus, replay=replay)
    start = check_start(recipe, ALONE)
    own, num_own = start.data.pack, start.data.pack.num_samples()
    seen, tokens, epochs = seen_in(stream_of(start, recipe), num_own=num_own)
    assert tokens[False] == 2 * own.num_tokens()
    assert all(set(range(num_own)) <= epoch for epoch in epochs)
    assert {seen[sample] for sample in range(num_own)} == {2}
    times = [seen[num_own + i] for i in range(start.data.replay.num_samples())]
    if repeats:
        assert max(times) - min(times) <= 1 < max(times)
    else:
        assert max(times) == 1
        assert tokens[True] / sum(tokens.values()) == pytest.approx(share, abs=0.02)
    assert start.plan.planned_tokens == pytest.approx(sum(tokens.values()), rel=0.02)


def test_a_mixture_is_as_without_replay_and_replay_comes_on_top(small_corpus, general_corpus):
    """One domain twice an epoch and one once, beside a little other text."""
    data = {
        "corpus": str(general_corpus),
        "sequence_tokens": SEQUENCE_TOKENS,
        "mixture": {"html": {"epochs": 2}},
    }
    recipe = alone(general_corpus, small_corpus, data=data)
    recipe = replace(recipe, replay=replace(recipe.replay, share=0.05))
    start = check_start(recipe, ALONE)
    html, email = sorted(start.mixture[:2], key=lambda domain: domain.name, reverse=True)
    num_own = start.data.pack.num_samples()
    seen, tokens, _ = seen_in(stream_of(start, recipe), num_own=num_own)
    assert {seen[sample] for sample in email.samples} == {2}
    assert {seen[sample] for sample in html.samples} == {4}
    assert {seen[sample] for sample in seen if sample >= num_own} == {1}
    assert tokens[True] / sum(tokens.values()) == pytest.approx(0.05, abs=0.02)


def test_a_sample_of_replay_is_that_of_its_own_corpus(small_corpus, general_corpus):
    recipe = alone(small_corpus, general_corpus)
    start = check_start(recipe, ALONE)
    joined, num_own = join(start.data.pack, start.data.replay), start.data.pack.num_samples()
    assert start.data.replay is not None
    for i in (0, 1, start.data.replay.num_samples() - 1):
        assert np.array_equal(joined.sample(num_own + i).ids, start.data.replay.sample(i).ids)
        assert np.array_equal(joined.pieces(num_own + i), start.data.replay.pieces(i))
    assert np.array_equal(joined.sample(num_own - 1).ids, start.data.pack.sample(num_own - 1).ids)


def refusal(recipe: Recipe) -> str:
    with pytest.raises(ValueError) as caught:
        check_start(recipe, ALONE)
    return str(caught.value)


def test_a_corpus_that_is_too_small_is_refused_with_a_share_that_fits(small_corpus, general_corpus):
    def asked(share: float, **more: Any) -> Recipe:
        replay = {"corpus": str(general_corpus), "share": share, **more}
        return alone(small_corpus, general_corpus, replay=replay)

    said = refusal(asked(0.9))
    available = open_corpus(general_corpus).open_pack(SEQUENCE_TOKENS).num_samples()
    assert said.startswith("replay.share 0.9 takes ")
    assert f"in 2 epochs, but replay.corpus {general_corpus} has {available:,}: a larger" in said
    assert said.endswith("or replay.repeats: true")
    most = float(said.partition("a share of at most ")[2].partition(",")[0])
    check_start(asked(most), ALONE)
    refusal(asked(most + 0.01))
    check_start(asked(0.9, repeats=True), ALONE)
    # and so by a plan, also where the run ends before its epochs do
    with pytest.raises(ValueError) as caught:
        read_size(asked(0.9))
    assert str(caught.value) == said
    assert read_size(asked(most)) and read_size(asked(0.9, repeats=True))
    short = replace(asked(0.5), train=replace(asked(0.5).train, epochs=5000.0, max_steps=1))
    assert check_start(short, ALONE) and read_size(short)


def test_a_corpus_that_is_too_small_for_any_share_asks_for_fewer_epochs(
    small_corpus, general_corpus
):
    train = {"global_batch_tokens": 8 * SEQUENCE_TOKENS, "epochs": 5000, "micro_batch_samples": 1}
    said = refusal(alone(small_corpus, general_corpus, train=train))
    assert said.endswith(": a larger corpus, fewer train.epochs, or replay.repeats: true")


def test_a_corpus_that_cannot_be_read_is_refused_by_its_key(small_corpus, tmp_path):
    (tmp_path / "manifest.json").mkdir()
    assert refusal(alone(small_corpus, tmp_path)).startswith("replay.corpus: ")


def test_a_corpus_that_does_not_go_with_the_runs_own_is_refused(
    small_corpus, general_corpus, tmp_path
):
    text = tmp_path / "text.txt"
    text.write_text("Other words. " * 500)
    options = {"inputs": (text,), "num_workers": 1, "val_frac": 0.0}
    build(
        BuildOptions(
            out=tmp_path / "foreign", train_tokenizer="bpe", train_vocab_size=300, **options
        )
    )
    assert "has another tokenizer" in (said := refusal(alone(small_corpus, tmp_path / "foreign")))
    assert said.startswith("replay.corpus: ")
    own = str(small_corpus / "tokenizer")
    build(BuildOptions(out=tmp_path / "other", tokenizer=own, **options))
    pack(tmp_path / "other", seq_len=2 * SEQUENCE_TOKENS)
    said = refusal(alone(small_corpus, tmp_path / "other"))
    assert f"replay.corpus: {tmp_path / 'other'}" in said
    assert f"not packed for {SEQUENCE_TOKENS} tokens" in said
    assert "replay.corpus: " in refusal(alone(small_corpus, tmp_path / "absent"))
    tiny = {"corpus": str(general_corpus), "share": 1e-6}
    said = refusal(alone(small_corpus, general_corpus, replay=tiny))
    assert said.startswith("replay.share 1e-06 of an epoch of ")
    assert said.endswith("other tokens is less than one sample")


def test_a_corpus_whose_tokenizer_has_a_chat_template_besides_goes_with_the_runs_own(
    small_corpus, tmp_path
):
    """As conversations have it: the same ids mean the same text."""
    shutil.copytree(small_corpus / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "text.txt").write_text("Other words. " * 3000)
    options = {"inputs": (tmp_path / "text.txt",), "num_workers": 1, "val_frac": 0.0}
    build(BuildOptions(out=tmp_path / "chats", tokenizer=str(tmp_path / "tokenizer"), **options))
    pack(tmp_path / "chats", seq_len=SEQUENCE_TOKENS)
    corpora = small_corpus, tmp_path / "chats"
    first, second = (open_corpus(corpus).manifest.tokenizer for corpus in corpora)
    assert first.sha256 != second.sha256
    replay = {"corpus": str(corpora[1]), "share": 0.1}
    assert check_start(alone(*corpora, replay=replay), ALONE).data.replay is not None


@pytest.mark.parametrize("share", [0, 1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"replay\.share: Input should be"):
        alone(Path("a"), Path("b"), replay={"corpus": "b", "share": share})


def test_the_domain_itself_is_no_replay(tmp_path):
    (tmp_path / "same").symlink_to(tmp_path)
    for corpus in (tmp_path, tmp_path / "same"):
        with pytest.raises(ValueError, match=f"replay.corpus {corpus} is data.corpus, whose"):
            alone(tmp_path, corpus)


def test_a_plan_counts_the_tokens_of_replay(small_corpus, general_corpus):
    recipe = alone(small_corpus, general_corpus)
    start = check_start(recipe, ALONE)
    size = read_size(recipe)
    assert size is not None and start.data.replay is not None
    assert size.epoch_tokens == start.plan.samples_per_epoch * SEQUENCE_TOKENS
    num_samples = start.data.pack.num_samples() + start.data.replay.num_samples()
    assert size.pack_tokens == num_samples * SEQUENCE_TOKENS


@pytest.fixture(scope="module")
def scored(
    small_corpus: Path, general_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Copies of both with scores, so that tokens of both drop by them."""
    folder = tmp_path_factory.mktemp("scored")
    rng = np.random.default_rng(0)
    copies = folder / "own", folder / "general"
    for source, copy in zip((small_corpus, general_corpus), copies, strict=True):
        shutil.copytree(source, copy)
        write_scores(
            open_corpus(copy),
            lambda shard: rng.gamma(1.0, 1.0, shard.num_tokens),
            name="reference",
            measure="shannon",
            model="a-model",
            seq_len=SEQUENCE_TOKENS,
        )
    return copies


def test_scores_of_the_replay_corpus_are_needed_where_those_of_the_runs_own_are(
    scored, general_corpus
):
    own, general = scored
    reference = {"entropy__source": "reference"}
    check_start(alone(own, general, **reference), ALONE)
    said = refusal(alone(own, general_corpus, **reference))
    assert f"{general_corpus}: no scores 'reference'" in said
    # a cache has no value yet of a sample that is seen for the first time
    check_start(alone(own, general_corpus, entropy__source="cache"), ALONE)


SOURCES: dict[str, dict[str, Any]] = {
    "online": {},
    "reference": {"entropy__source": "reference"},
    "cache": {"entropy__source": "cache"},
}


@pytest.mark.parametrize("source", SOURCES if WHOLE else ("cache",))
def test_a_stopped_run_with_replay_has_the_losses_of_one_on_another_layout(
    scored, tmp_path, source
):
    """Bit for bit on the same layout, within rounding on another."""
    own, general = scored
    whole, stopped, other = (tmp_path / name for name in ("whole", "stopped", "other"))
    changes = SOURCES[source]
    run_ranks(train_on_rank, recipe_of(own, general, whole, **changes), world_size=2)
    for stop in (3, None):
        halted = {**changes, "train__stop_after_steps": stop}
        run_ranks(train_on_rank, recipe_of(own, general, stopped, **halted), world_size=2)
    assert metrics(stopped, "step") == metrics(whole, "step")
    layout = {"train__sequence_parallel_size": 1, "train__micro_batch_samples": 2}
    run_ranks(train_on_rank, recipe_of(own, general, other, **changes, **layout), world_size=2)
    for found, expected in zip(metrics(other, "step"), metrics(whole, "step"), strict=True):
        assert found["tokens"] == expected["tokens"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    plain = tmp_path / "plain"
    run_ranks(train_on_rank, short_recipe(own, plain, **changes), world_size=2)
    assert metrics(plain, "step")[0]["loss"] != metrics(whole, "step")[0]["loss"]


def test_a_resume_with_another_replay_is_refused(scored, tmp_path):
    own, general = scored
    recipe = recipe_of(own, general, tmp_path / "run", train__stop_after_steps=1)
    run_ranks(train_on_rank, recipe, world_size=2)
    replay = {"corpus": str(general), "share": 0.5}
    changed = recipe_of(own, general, tmp_path / "run", replay=replay)
    with pytest.raises(AssertionError, match=r"recipe\.replay\.share: was 0\.25, is 0\.5"):
        run_ranks(train_on_rank, changed, world_size=2)
