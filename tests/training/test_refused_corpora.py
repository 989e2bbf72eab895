"""Corpora that hold nothing to learn, ids that there are not, or damage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.packing.pack import pack
from data_prep.shards import open_corpus
from tests.distributed import run_ranks
from tests.training.refusals import (
    build_ids,
    build_text,
    check,
    first_shard,
    flip,
    message_without_a_model,
    refused,
)
from tests.training.short_runs import SEQUENCE_TOKENS, short_recipe
from training.config.recipe import Recipe

# --- corpora without anything to learn, and with ids that there are not ---


@pytest.mark.parametrize(
    ("val_frac", "learnt", "told"),
    [
        (0.0, 1, "the validation split is empty; build it with a larger --val-frac"),
        (0.3, 0, "the train split has nothing to train on"),
    ],
)
def test_a_split_without_a_target_is_refused(small_corpus, tmp_path, val_frac, learnt, told):
    rows = [{"ids": [5, 6, i], "mask": [learnt] * 3} for i in range(300)]
    made = build_ids(
        tmp_path / "made", rows, tokenizer=small_corpus / "tokenizer", val_frac=val_frac
    )
    assert told in refused(lambda: check(made))


def test_a_validation_split_that_is_all_masked_is_refused(small_corpus, tmp_path):
    """Its loss would be 0: the best checkpoint there is."""
    tokenizer = small_corpus / "tokenizer"
    rows = [{"ids": [5, 6, i], "mask": [1] * 3} for i in range(300)]
    plain = open_corpus(build_ids(tmp_path / "a", rows, tokenizer=tokenizer, val_frac=0.3))
    held_out = {int(plain.document(i, "val")[2]) for i in range(plain.num_documents("val"))}
    for row in rows:
        row["mask"] = [int(row["ids"][2] not in held_out)] * 3
    made = build_ids(tmp_path / "b", rows, tokenizer=tokenizer, val_frac=0.3)
    assert "the validation split has no target tokens" in refused(lambda: check(made))
    assert check(made, evaluation__every_steps=None).plan.targets_per_epoch > 0


def test_held_out_samples_of_which_none_has_a_target_are_refused(small_corpus, tmp_path):
    """Their loss would be 0, whatever the rest of the split holds."""
    rows = [{"ids": [5 + i % 500] * 100, "mask": [int(i % 6 == 0)] * 100} for i in range(60)]
    tokenizer = small_corpus / "tokenizer"
    made = build_ids(tmp_path / "made", rows, tokenizer=tokenizer, val_frac=0.5)
    samples = open_corpus(made).open_pack(SEQUENCE_TOKENS)
    has_target = [
        bool(samples.sample(i, "val").in_loss.any()) for i in range(samples.num_samples("val"))
    ]
    first = has_target.index(True)
    assert first > 0
    told = refused(lambda: check(made, evaluation__max_samples=first))
    assert f"evaluation.max_samples {first}: the first {first} of {len(has_target)}" in told
    assert check(made, evaluation__max_samples=first + 1)


def test_a_document_longer_than_a_sample_is_trained_on_in_pieces(small_corpus, tmp_path):
    ids = [5 + i % 500 for i in range(3 * SEQUENCE_TOKENS + 7)]
    made = build_ids(
        tmp_path / "long",
        [{"ids": ids, "mask": [1] * len(ids)}],
        tokenizer=small_corpus / "tokenizer",
        val_frac=0.0,
    )
    start = check(
        made,
        num_processes=1,
        evaluation__every_steps=None,
        train={"global_batch_tokens": 64, "epochs": 1},
    )
    samples = [start.data.pack.sample(i) for i in range(start.data.pack.num_samples())]
    found = [token for s in samples for token in s.ids[: s.num_tokens].tolist()]
    assert sorted(found) == sorted(ids)
    assert start.plan.targets_per_epoch == len(ids) - len(samples)
    assert all(sample.position_ids[0] == 0 for sample in samples)


def test_an_id_beyond_the_vocabulary_is_named(corpus_copy):
    """Of a corpus that another program wrote, with checksums that fit."""
    from data_prep.durable import describe_file

    tokens = first_shard(corpus_copy, "tokens")
    ids = np.fromfile(tokens, dtype="<u2")
    ids[0] = 600
    tokens.write_bytes(ids.tobytes())
    manifest = corpus_copy / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sha256_of_the_rest"]
    for shard in content["shards"]:
        if shard["tokens"]["name"] == tokens.name:
            shard["tokens"]["sha256"] = describe_file(tokens).sha256
    manifest.write_text(json.dumps(content))
    pack(corpus_copy, seq_len=SEQUENCE_TOKENS, overwrite=True)
    index = check(corpus_copy).data.pack
    messages = []
    for i in range(index.num_samples()):
        try:
            index.sample(i)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert "id 600, expected ids below 512" in messages[0]


# --- damaged files of a corpus ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0")


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lead_out(path: Path) -> None:
    elsewhere = path.parent.parent / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


PARTS: dict[str, Callable[[Path], Path]] = {
    "tokens": lambda corpus: first_shard(corpus, "tokens"),
    "offsets": lambda corpus: first_shard(corpus, "docs"),
    "origins": lambda corpus: first_shard(corpus, "origins"),
    "held-out tokens": lambda corpus: min(corpus.glob("shard-val-*.tokens")),
    "inputs": lambda corpus: corpus / "inputs.jsonl",
    "pack's pieces": lambda corpus: corpus / "pack-64" / "train.pieces",
    "pack's samples": lambda corpus: corpus / "pack-64" / "train.samples",
    "scores": lambda corpus: min((corpus / "scores-reference").glob("shard-train-*.f16")),
}
DAMAGES: dict[Callable[[Path], None], tuple[str, str]] = {
    cut: ("damaged: expected", "bytes, found"),
    grow: ("damaged: expected", "bytes, found"),
    empty: ("damaged: expected", "bytes, found 0"),
    lose: ("missing; expected", "bytes"),
    lead_out: ("points outside its folder", ""),
    flip: ("damaged: expected sha256", ", found"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_file_is_refused_by_name_with_expected_and_found(scored_copy, part, damage):
    path = PARTS[part](scored_copy)
    damage(path)
    verify = "hashes" if damage is flip else "sizes"
    message = refused(lambda: check(scored_copy, entropy__source="reference", data__verify=verify))
    for words in (path.name, *DAMAGES[damage]):
        assert words in message


def test_sizes_are_all_that_is_compared_when_a_recipe_says_so(scored_copy):
    flip(PARTS["tokens"](scored_copy))
    assert check(scored_copy, data__verify="sizes")


RECORDS = {
    "manifest": "manifest.json",
    "pack's manifest": "pack-64/pack.json",
    "scores' manifest": "scores-reference/scores.json",
}


@pytest.mark.parametrize("name", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"schema_version": 99}', b"half"]
)
def test_a_damaged_manifest_is_refused_by_name(scored_copy, name, content):
    path = scored_copy / name
    path.write_bytes(path.read_bytes()[:-9] if content == b"half" else content)
    message = refused(lambda: check(scored_copy, entropy__source="reference"))
    assert f"{path}: not a valid record of `python -m data_prep" in message


def test_a_changed_tokenizer_is_refused(corpus_copy):
    flip(max((corpus_copy / "tokenizer").iterdir(), key=lambda path: path.stat().st_size))
    assert "tokenizer" in refused(lambda: check(corpus_copy))


def test_a_pack_and_scores_of_another_corpus_are_refused(scored_copy, tmp_path):
    other = build_text(tmp_path / "other", val_frac=0.1)
    for name in ("pack-64", "scores-reference"):
        moved = other / name
        shutil.rmtree(moved, ignore_errors=True)
        shutil.copytree(scored_copy / name, moved)
        message = refused(lambda: check(other, entropy__source="reference"))
        assert f"{moved}: made for another corpus: expected fingerprint" in message
        shutil.rmtree(moved)
        pack(other, seq_len=SEQUENCE_TOKENS)


def test_scores_of_another_measure_are_refused(scored_copy):
    message = refused(lambda: check(scored_copy, regulariser="rho1"))
    assert "holds shannon, this recipe needs nll" in message


@pytest.mark.parametrize("part", ["tokens", "pack's pieces", "held-out tokens"])
def test_every_rank_says_the_same_of_a_file_that_one_has_read(corpus_copy, tmp_path, part):
    path = PARTS[part](corpus_copy)
    flip(path)
    recipe = short_recipe(corpus_copy, tmp_path / "run")
    messages = run_ranks(message_without_a_model, recipe, world_size=2, timeout_seconds=60)
    assert messages[0] == messages[1]
    assert f"{path}: damaged: expected sha256" in messages[0]
    assert not (tmp_path / "run").exists()


def test_what_only_one_rank_sees_is_said_by_all(small_corpus, tmp_path):
    """A host with a copy of its own that is not whole."""
    recipe = short_recipe(small_corpus, tmp_path / "run")
    messages = run_ranks(message_of_a_lost_corpus, recipe, world_size=2, timeout_seconds=60)
    assert messages[0] == messages[1]
    assert "absent/manifest.json: not found" in messages[0]


def message_of_a_lost_corpus(recipe: Recipe) -> str:
    import dataclasses

    if os.environ["RANK"] == "1":
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, corpus="absent"))
    return message_without_a_model(recipe)
