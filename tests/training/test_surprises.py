"""What a start says of settings that do something else than they seem to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from data_prep.shards import open_corpus
from tests.training.refusals import CPU
from tests.training.short_runs import SEQUENCE_TOKENS, short_recipe
from training.ranks.dist import Layout
from training.run.start import check_start
from training.run.surprises import surprises


@pytest.fixture(scope="module")
def two_domains(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domains") / "corpus"
    source = Path(logging.__file__).parent
    build(
        BuildOptions(
            inputs=(f"first={source}", f"second={source.parent / 'email'}"),
            out=folder,
            tokenizer=str(small_corpus / "tokenizer"),
            val_frac=0.5,
            num_workers=1,
        )
    )
    pack(folder, seq_len=SEQUENCE_TOKENS)
    return folder


def said(corpus: Path, **changes: Any) -> list[str]:
    recipe = short_recipe(corpus, Path("unused"), train__sequence_parallel_size=1, **changes)
    return surprises(recipe, check_start(recipe, Layout(0, 1, 1, CPU)), None)


def test_steps_that_the_epochs_do_not_reach_are_told(small_corpus):
    """Elsewhere max_steps decides how often the data comes (unsloth issue 594)."""
    assert said(small_corpus) == []
    (told,) = said(small_corpus, train__max_steps=10**6, train__epochs=2)
    assert told.startswith("train.max_steps 1000000 is not reached: train.epochs 2 ends the run")


def test_few_steps_of_little_data_are_told(small_corpus: Path) -> None:
    pack = open_corpus(small_corpus).open_pack(SEQUENCE_TOKENS)
    samples = pack.num_samples()
    train = {"epochs": 4, "global_batch_tokens": 2 * samples * SEQUENCE_TOKENS}
    train |= {"micro_batch_samples": 1, "sequence_parallel_size": 1}

    def told(**changes: Any) -> list[str]:
        recipe = short_recipe(small_corpus, Path("unused"), train=train | changes)
        return surprises(recipe, check_start(recipe, Layout(0, 1, 1, CPU)), None)

    few, never = told()
    assert few == (
        f"4 epochs are only 2 optimizer steps, as train.global_batch_tokens "
        f"{train['global_batch_tokens']:,} is 2 times an epoch; fewer tokens a step learn more "
        "from little data"
    )
    assert never == "evaluation.every_steps 3 is never due before the end: the run has 2 steps"
    # meant, as in a trial
    assert told(max_steps=2) == told(stop_after_steps=1) == []
    assert told(max_steps=49) == [
        "train.max_steps 49 is not reached: train.epochs 4 ends the run after 2 steps",
        never,
    ]
    one_sample = {"global_batch_tokens": SEQUENCE_TOKENS, "epochs": 2 / samples}
    assert told(**one_sample) == [never]  # no smaller batch could help
    assert told(global_batch_tokens=8 * SEQUENCE_TOKENS, epochs=8 * 50 / samples) == []


def test_a_teacher_that_knows_nothing(small_corpus: Path) -> None:
    assert said(small_corpus, teacher={"kind": "ema"}, ema={"half_life_steps": 2}) == []
    (told,) = said(small_corpus, teacher={"kind": "base"})
    assert told.startswith("teacher.kind: base teaches the predictions of random weights")


def test_strengths_of_regularisers_that_are_not_named(small_corpus: Path) -> None:
    baseline = {"mlp_dropout": 0.2, "mir_weight": 0.5, "neftune_alpha": 3.0}
    (told,) = said(small_corpus, baseline=baseline, regularisers=["entrodrop", "neftune"])
    assert told == (
        "baseline.mlp_dropout and baseline.mir_weight: not used, as regularisers is "
        "[entrodrop, neftune]"
    )


def test_a_trace_of_steps_that_a_start_does_not_take(small_corpus: Path) -> None:
    profile = {"first_step": 2, "num_steps": 2}
    assert not [text for text in said(small_corpus, profile=profile) if "profile" in text]
    (told,) = said(small_corpus, profile=profile, train__stop_after_steps=2)
    assert told == (
        "profile: no trace, since it would be of steps 2 to 3, and this start takes steps 1 to 2: "
        "set profile.first_step"
    )


def test_two_passes_for_each_micro_batch_are_told(small_corpus):
    (told,) = said(small_corpus, regularisers=["entrodrop", "mir"])
    assert "mir takes two forward and backward passes for each micro-batch" in told


def test_a_domain_whose_weight_rounds_to_nothing_is_told(two_domains):
    """A weight above 0 is meant (Megatron-Bridge pull request 5438)."""
    taken = {"evaluation__max_samples": None}
    (told,) = said(two_domains, data__mixture={"second": {"epochs": 1e-5}}, **taken)
    assert told.startswith("data.mixture: second rounds to none of its ")
    assert said(two_domains, data__mixture={"second": {"epochs": 0}}, **taken) == []


def test_a_domain_without_a_held_out_sample_among_the_first_is_told(two_domains):
    """The split is grouped by domain (lighteval pull request 1323)."""
    first, second = (
        open_corpus(two_domains).open_pack(SEQUENCE_TOKENS).manifest.splits["val"].domains
    )
    assert first.num_samples and second.num_samples
    (told,) = said(two_domains, evaluation__max_samples=first.num_samples)
    assert "domain second is not among the first" in told
    assert said(two_domains, evaluation__max_samples=first.num_samples + 1) == []
    assert said(two_domains, evaluation={"every_steps": None, "max_samples": 1}) == []
