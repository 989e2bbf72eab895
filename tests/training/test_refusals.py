"""What cannot be trained is refused before a model is built: what is broken, how, what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.build import BuildOptions, build
from data_prep.packing.pack import pack
from data_prep.reading.documents import Fields
from data_prep.scores import write_scores
from data_prep.shards import open_corpus
from tests.distributed import run_ranks
from tests.training.short_runs import SEQUENCE_TOKENS, short_recipe, train_on_rank
from training.config import Recipe
from training.dist import Layout, init_layout
from training.recipe_file import dump_recipe, load_recipe
from training.run_identity import refuse_differences, run_identity
from training.start import Start, check_start

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

RECIPE = """
run_dir: runs/x
model: {config: {model_type: qwen3}}
data: {corpus: data/x, sequence_tokens: 128}
train: {global_batch_tokens: 1024}
"""

# --- recipes: an override, and what is said of it; more of them in test_config.py ---

VALUES = [
    # numbers
    ("optimizer.lr=0", "optimizer.lr: Input should be greater than 0 (is 0)"),
    ("optimizer.lr=.nan", "optimizer.lr: Input should be"),
    ("optimizer.lr=.inf", "optimizer.lr: Input should be a finite number (is inf)"),
    ("optimizer.lr=fast", "unable to parse string as a number (is 'fast')"),
    ("optimizer.beta2=1", "optimizer.beta2: Input should be less than 1 (is 1)"),
    ("optimizer.weight_decay=-0.1", "greater than or equal to 0 (is -0.1)"),
    ("train.epochs=0", "train.epochs: Input should be greater than 0 (is 0)"),
    ("train.epochs=.inf", "train.epochs: Input should be a finite number (is inf)"),
    ("train.max_steps=0", "train.max_steps: Input should be greater than or equal to 1"),
    ("train.max_steps=2.5", "got a number with a fractional part (is 2.5)"),
    ("train.max_steps=yes", "train.max_steps: is no switch (is True)"),
    ("train.micro_batch_samples=0", "greater than or equal to 1 (is 0)"),
    ("train.sequence_parallel_size=0", "greater than or equal to 1 (is 0)"),
    ("train.gradient_clipping=0", "greater than 0 (is 0)"),
    ("train.z_loss=-1", "greater than or equal to 0 (is -1)"),
    ("train.stop_after_steps=-3", "greater than or equal to 1 (is -3)"),
    ("train.global_batch_tokens=1e3", "train.global_batch_tokens: Input should be a valid integer"),
    ("data.sequence_tokens=1", "greater than or equal to 2 (is 1)"),
    ("seed=-1", "seed: Input should be greater than or equal to 0 (is -1)"),
    ("seed=99999999999999999999", "seed: Input should be less than 1"),
    ("seed=true", "seed: is no switch (is True)"),
    ("schedule.warmup_frac=1.5", "less than or equal to 1 (is 1.5)"),
    ("dropout.quantile=1.5", "dropout.quantile: Input should be less than or equal to 1"),
    ("dropout.max_rate=-0.1", "greater than or equal to 0 (is -0.1)"),
    ("dropout.mask_token_id=-1", "greater than or equal to 0 (is -1)"),
    ("dropout.curriculum.midpoint=1", "less than 1 (is 1)"),
    ("dropout.curriculum.steepness=0", "greater than 0 (is 0)"),
    ("baseline.label_smoothing=1", "less than 1 (is 1)"),
    ("baseline.neftune_alpha=0", "greater than 0 (is 0)"),
    ("evaluation.num_bands=65", "less than or equal to 64 (is 65)"),
    ("evaluation.every_steps=0", "greater than or equal to 1 (is 0)"),
    ("checkpoint.keep_last=0", "greater than or equal to 1 (is 0)"),
    ("guard.window_steps=3", "greater than or equal to 16 (is 3)"),
    ("watchdog.seconds=0", "greater than 0 (is 0)"),
    ("data.mixture={notes: {epochs: -1}}", "data.mixture.notes.epochs: Input should be greater"),
    # words
    ("run_dir=", "run_dir: Input should be a valid string (is None)"),
    ("run_dir=''", "run_dir: String should have at least 1 character"),
    ("run_dir=5", "run_dir: Input should be a valid string (is 5)"),
    ("data.corpus=''", "data.corpus: String should have at least 1 character"),
    ("deepspeed=''", "deepspeed: String should have at least 1 character"),
    ("data.verify=no", "data.verify: is no switch (is False)"),
    ("data.verify=size", "data.verify: Input should be 'hashes' or 'sizes' (is 'size')"),
    ("schedule.kind=cosin", "'cosine', 'wsd' or 'constant' (is 'cosin')"),
    ("entropy.source=onlin", "'online', 'reference' or 'cache' (is 'onlin')"),
    ("dropout.where=inputs", "'input', 'loss' or 'both' (is 'inputs')"),
    ("guard.on_spike=warn", "'report', 'skip', 'rollback' or 'stop' (is 'warn')"),
    ("resume=always", "'auto' or 'never' (is 'always')"),
    ("evaluation.every_steps=often", "unable to parse string as an integer (is 'often')"),
    # sections
    ("data=3", "data: Input should be a dictionary"),
    ("model=null", "model: Input should be a dictionary"),
    ("model.config=qwen3", "model.config: Input should be a valid dictionary (is 'qwen3')"),
    ("model.config={}", "model.config needs the key model_type, for example qwen3"),
    ("data.mixture=[]", "data.mixture: Input should be a valid dictionary"),
    ("data.mixture={notes: 3}", "data.mixture.notes: Input should be a dictionary"),
    # names
    ("optimiser.lr=1", "optimiser: unknown key; did you mean optimizer?"),
    ("optimizer.betas=[0.9, 0.9]", "did you mean optimizer.beta2?"),
    ("train.max_step=3", "did you mean train.max_steps?"),
    ("data.sequence_token=3", "did you mean data.sequence_tokens?"),
    ("a..b=3", "a: unknown key; valid: run_dir, model,"),
    ("data.mixture={notes: {epoch: 1}}", "did you mean data.mixture.notes.epochs?"),
    # what does not fit together
    ("train.global_batch_tokens=64", "nearest that work: 128"),
    ("train.sequence_parallel_size=3", "nearest sequence_tokens that work: 126, 129"),
    ("data.mixture={notes: {}}", "set exactly one of epochs and proportion"),
    ("entropy.scope=corpus", "needs entropy.source: reference or cache (is online)"),
    ("entropy.threshold=lagged", "and dropout.where: loss (are online and input)"),
    # YAML
    ("seed={{a: b}: c}", "expected a name before the colon"),
    ("seed={a: 1, a: 2}", "key 'a' stands twice"),
    ("seed=!!python/object/apply:os.getpid []", "could not determine a constructor"),
    ("=3", "override '=3' is not of the form a.b=c"),
]

FILES = [
    # (what is broken, bytes of the recipe, what is said)
    ("no UTF-8", RECIPE.encode() + b"seed: \xff\n", "no UTF-8: invalid start byte at byte"),
    ("cut off", RECIPE.encode()[:-3], "expected ',' or '}'"),
    ("a key that is a list", RECIPE.encode() + b"? [a]\n: b\n", "line 6: expected a name before"),
    ("a key that is a number", RECIPE.encode() + b"3: 4\n", "3: unknown key; valid: run_dir"),
    ("nested without end", b"[" * 20_000, "nested too deeply"),
    ("a byte 0", RECIPE.encode() + b"\0", "special characters are not allowed"),
    ("a tab", RECIPE.encode() + b"\tseed: 3\n", r"found character '\t'"),
    ("an alias of nothing", RECIPE.encode() + b"seed: *x\n", "found undefined alias 'x'"),
    ("two documents", RECIPE.encode() + b"---\nseed: 3\n", "expected a single document"),
    ("no data section", b"run_dir: x\nmodel: {pretrained: y}\n", "data: Field required"),
]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("override", "told"), VALUES, ids=[row[0] for row in VALUES])
def test_a_recipe_with_a_wrong_value_is_refused(tmp_path, override, told):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert load_recipe(path)
    assert told in refused(lambda: load_recipe(path, [override]))


@pytest.mark.parametrize(("content", "told"), [row[1:] for row in FILES], ids=[r[0] for r in FILES])
def test_a_damaged_recipe_is_refused_by_its_name(tmp_path, content, told):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    message = refused(lambda: load_recipe(path))
    assert told in message
    assert str(path) in message


# --- recipes that are right and do not fit corpus, model or processes ---

STARTS: list[tuple[dict[str, Any], int, str]] = [
    # batches, by number of processes
    ({"train__micro_batch_samples": 3}, 2, "Nearest that divide: 384 or 576"),
    ({"train__sequence_parallel_size": 1, "train__micro_batch_samples": 1}, 6, "384 or 768"),
    ({"train__micro_batch_samples": 16}, 2, "take 16 at once. Nearest that divide: 1024"),
    ({"train__epochs": 0.001}, 2, "but 0.001 epochs of data.corpus"),
    ({"train__global_batch_tokens": 6_400_000, "train__epochs": 2}, 2, "or more train.epochs"),
    # corpus
    ({"data__corpus": "absent"}, 2, "absent/manifest.json: not found; `python -m data_prep build`"),
    ({"data__corpus": "README.md"}, 2, "README.md/manifest.json: not found"),
    ({"data__sequence_tokens": 128, "train__global_batch_tokens": 1024}, 2, "--seq-len 128"),
    ({"data__mixture": {"notes": {"epochs": 1}}}, 2, "no domain 'notes' in this corpus; there are"),
    ({"data__mixture": {"main": {"epochs": 0}}}, 2, "data.mixture:"),
    ({"entropy__source": "reference"}, 2, "no scores 'reference'; there are: none"),
    ({"regulariser": "rho1"}, 2, "no scores 'reference'; there are: none"),
    # model
    ({"model": {"pretrained": "./absent"}}, 2, "model.pretrained: there is no folder ./absent"),
    ({"model": {"pretrained": "ds_configs/"}}, 2, "model: "),
    ({"model": {"pretrained": ""}}, 2, "model: "),
    ({"model__config__model_type": "qwen33"}, 2, "did you mean qwen3"),
    ({"model__config__model_type": 3}, 2, "transformers knows no '3'"),
    ({"model": {"config": {"model_type": "gpt2"}}}, 2, "gpt2 is not supported"),
    ({"model": {"config": {"model_type": "bert"}}}, 2, "bert is not supported"),
    ({"model": {"config": {"model_type": "t5"}}}, 2, "t5 is not supported"),
    ({"model": {"config": {"model_type": "whisper"}}}, 2, "whisper is not supported"),
    ({"model": {"config": {"model_type": "mamba"}}}, 2, "mamba is not supported"),
    ({"model__config__hidden_sise": 3}, 2, "did you mean hidden_size"),
    (
        {"model__config__hidden_size": "big"},
        2,
        "'hidden_size' expected int, got str (value: 'big')",
    ),
    ({"model__config__hidden_size": 0}, 2, "hidden_size is 0; expected a number of at least 1"),
    ({"model__config__num_hidden_layers": 0}, 2, "num_hidden_layers is 0; expected"),
    ({"model__config__head_dim": 0}, 2, "head_dim is 0; expected"),
    ({"model__config__head_dim": 7}, 2, "even rotary dimension, but got `head_dim`=7"),
    ({"model__config__intermediate_size": 0}, 2, "intermediate_size is 0; expected"),
    ({"model__config__num_key_value_heads": 3}, 2, "does not divide by num_key_value_heads 3"),
    ({"model__config__num_attention_heads": None}, 2, "'num_attention_heads' expected int"),
    ({"model__config__hidden_act": "gelu2"}, 2, "no hidden_act 'gelu2'; near: gelu"),
    ({"model__config__attention_dropout": 0.1}, 2, "attention_dropout must be 0"),
    ({"model__config__layer_types": ["sliding_attention"] * 2}, 2, "only full_attention"),
    ({"model__config__vocab_size": 100}, 2, "100 is smaller than the corpus's 512"),
    ({"model__config__vocab_size": 511}, 2, "511 is smaller than the corpus's 512"),
    ({"model__config__vocab_size": "many"}, 2, "'vocab_size' expected int, got str"),
    ({"train__sequence_parallel_size": 8}, 8, "8 does not fit 4 attention heads and 2 key-value"),
    ({"dropout__mask_token_id": 512}, 2, "the model's ids are 0 to 511"),
    # DeepSpeed
    ({"deepspeed": "absent.json"}, 2, "deepspeed: absent.json: No such file"),
    ({"deepspeed": "ds_configs"}, 2, "deepspeed: ds_configs: Is a directory"),
    ({"deepspeed": "README.md"}, 2, "deepspeed: README.md: Expecting value"),
]


def check(corpus: Path, *, num_processes: int = 2, **changes: Any) -> Start:
    """The checks of every rank, of which each reads a share of the files."""
    recipe = short_recipe(corpus, Path("unused"), **changes)
    sp_size = recipe.train.sequence_parallel_size
    layouts = [Layout(rank, num_processes, sp_size, CPU) for rank in range(num_processes)]
    starts = [check_start(recipe, layout) for layout in layouts]
    return starts[0]


@pytest.mark.parametrize(("changes", "num_processes", "told"), STARTS)
def test_a_recipe_that_does_not_fit_is_refused(small_corpus, changes, num_processes, told):
    assert told in refused(lambda: check(small_corpus, num_processes=num_processes, **changes))


def test_what_is_refused_above_is_refused_for_its_change_alone(small_corpus):
    assert check(small_corpus).plan.total_steps == 8


@pytest.mark.parametrize(("num_processes", "sp_size"), [(1, 2), (3, 2), (2, 4)])
def test_sequences_shared_by_more_than_there_are_is_refused(monkeypatch, num_processes, sp_size):
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    message = refused(lambda: init_layout(sp_size=sp_size))
    assert f"does not divide the number of processes {num_processes}" in message
    assert f"launch a multiple of {sp_size}, or set it to one of [1" in message


ZERO = {"stage": 3}
DEEPSPEED: list[tuple[Any, str]] = [
    ([], "expected keys and values"),
    ({"zero_optimization": 3}, "zero_optimization: expected keys and values"),
    ({"zero_optimization": {"stage": 2}}, "stage is 2; this engine needs 3"),
    ({"zero_optimization": {**ZERO, "reduce_scatter": False}}, "reduce_scatter must be true"),
    ({"zero_optimization": {**ZERO, "stage3_max_live": 1}}, "stage3_max_live: Extra inputs"),
    ({"zero_optimization": {**ZERO, "reduce_bucket_size": "big"}}, "bucket_size: Input should be"),
    ({"zero_optimization": {**ZERO, "offload_optimizer": "cpu"}}, "offload_optimizer: Input"),
    ({"zero_optimisation": ZERO}, "did you mean zero_optimization?"),
    (
        {"zero_optimization": ZERO, "bf61": {"enabled": True}},
        "bf61: unknown key; did you mean bf16",
    ),
    ({"zero_optimization": ZERO, "bfloat16": {"enabled": True}}, "did you mean bf16?"),
    ({"zero_optimization": ZERO, "bf16": True}, "bf16: expected keys and values"),
    (
        {"zero_optimization": ZERO, "bf16": {"enabled": "yes"}},
        "expected true or false, found 'yes'",
    ),
    ({"zero_optimization": ZERO, "fp16": {"enabled": True}}, "fp16 is not supported"),
    ({"zero_optimization": ZERO, "bf16": {"enabled": "auto"}}, '"auto" is a value of the Hugging'),
    ({"zero_optimization": ZERO, "train_batch_size": 8}, "belongs to the recipe"),
    ({"zero_optimization": ZERO, "optimizer": {}}, "optimizer belongs to the recipe"),
]


@pytest.mark.parametrize(("config", "told"), DEEPSPEED)
def test_a_deepspeed_file_that_cannot_be_meant_is_refused(small_corpus, tmp_path, config, told):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    message = refused(lambda: check(small_corpus, deepspeed=str(path)))
    assert told in message
    assert str(path) in message


PRETRAINED = [
    ("", "not a valid JSON file"),
    ("{}", "Should have a `model_type` key"),
    ('{"model_type": "qwen3"', "not a valid JSON file"),
    ('{"model_type": "nope"}', "does not recognize this architecture"),
    ('{"model_type": "qwen3", "vocab_size": 100}', "100 is smaller than the corpus's 512"),
    ('{"model_type": "qwen3", "vocab_size": "x"}', "'vocab_size' expected int, got str"),
    ('{"model_type": "x", "auto_map": {"AutoConfig": "a.B"}}', "contains custom code"),
    ("3", "model: "),
]


@pytest.mark.parametrize(("config", "told"), PRETRAINED)
def test_a_pretrained_model_that_cannot_be_read_is_refused(small_corpus, tmp_path, config, told):
    (tmp_path / "config.json").write_text(config)
    assert told in refused(lambda: check(small_corpus, model={"pretrained": str(tmp_path)}))


# --- corpora without anything to learn, and with ids that there are not ---


def build_ids(
    folder: Path, rows: list[dict[str, Any]], *, tokenizer: Path, val_frac: float
) -> Path:
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    build(
        BuildOptions(
            inputs=(folder / "rows.jsonl",),
            out=folder / "corpus",
            tokenizer=str(tokenizer),
            fields=Fields(ids="ids", loss_mask="mask"),
            val_frac=val_frac,
            num_workers=1,
        )
    )
    pack(folder / "corpus", seq_len=SEQUENCE_TOKENS)
    return folder / "corpus"


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
    assert "the validation split has no token that is a target" in refused(lambda: check(made))
    assert check(made, evaluation__every_steps=None).plan.targets_per_epoch > 0


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
        evaluation__every_steps=None,
        train={"global_batch_tokens": 64, "epochs": 1},
    )
    samples = [start.pack.sample(i) for i in range(start.pack.num_samples())]
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
    for shard in content["shards"]:
        if shard["tokens"]["name"] == tokens.name:
            shard["tokens"]["sha256"] = describe_file(tokens).sha256
    manifest.write_text(json.dumps(content))
    pack(corpus_copy, seq_len=SEQUENCE_TOKENS, overwrite=True)
    index = check(corpus_copy).pack
    messages = []
    for i in range(index.num_samples()):
        try:
            index.sample(i)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert "id 600, expected ids below 512" in messages[0]


# --- damaged files of a corpus ---


@pytest.fixture
def corpus_copy(small_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


@pytest.fixture
def scored_copy(corpus_copy: Path) -> Path:
    write_scores(
        open_corpus(corpus_copy),
        lambda shard: np.ones(shard.num_tokens),
        name="reference",
        measure="shannon",
        model="a-model",
        seq_len=SEQUENCE_TOKENS,
    )
    return corpus_copy


def first_shard(corpus: Path, suffix: str) -> Path:
    return min(corpus.glob(f"shard-train-*.{suffix}"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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
    lead_out: ("leads out of its folder", ""),
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


def message_without_a_model(recipe: Recipe) -> str:
    from training import loop

    def build_engine(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was built")

    loop.build_engine = build_engine
    return refused(lambda: loop.train(recipe))


# --- a run that is gone on with ---


def build_text(folder: Path, **changes: Any) -> Path:
    options = {"train_vocab_size": 512, "val_frac": 0.3, **changes}
    build(
        BuildOptions(
            inputs=(Path(json.__file__).parent,),
            out=folder,
            train_tokenizer="bpe",
            num_workers=1,
            **options,
        )
    )
    pack(folder, seq_len=SEQUENCE_TOKENS)
    return folder


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
    ({"regulariser": "none"}, "regulariser: was 'entrodrop', is 'none'"),
    ({"entropy__source": "cache"}, "entropy.source: was 'online', is 'cache'"),
    ({"dropout__quantile": 0.25}, "dropout.quantile: was 0.5, is 0.25"),
    ({"dropout__curriculum__kind": "cosine"}, "curriculum.kind: was 'linear', is 'cosine'"),
    ({"model__config__hidden_size": 32}, "model.config.hidden_size: was 16, is 32"),
    ({"model__config__num_hidden_layers": 1}, "num_hidden_layers: was 2, is 1"),
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
]


def identity(corpus: Path, **changes: Any) -> dict[str, Any]:
    changes = {"run_dir": "unused", **changes}
    recipe = short_recipe(corpus, Path(changes.pop("run_dir")), **changes)
    start = check_start(recipe, Layout(0, 2, recipe.train.sequence_parallel_size, CPU))
    found = run_identity(recipe, start.pack, dtype=start.dtype, scores=start.scores)
    kept: dict[str, Any] = json.loads(json.dumps(found))  # as a checkpoint gives it back
    return kept


def resume(saved: dict[str, Any], current: dict[str, Any]) -> None:
    refuse_differences(Path("checkpoint"), saved, current, accepted=())


@pytest.mark.parametrize(("changes", "told"), CHANGES)
def test_a_resume_with_a_changed_recipe_is_refused(small_corpus, changes, told):
    message = refused(lambda: resume(identity(small_corpus), identity(small_corpus, **changes)))
    assert told in message
    assert "--accept-changes " in message


@pytest.mark.parametrize("changes", FREE)
def test_a_resume_may_change_what_decides_nothing(small_corpus, changes):
    resume(identity(small_corpus), identity(small_corpus, **changes))


@pytest.mark.parametrize(
    ("what", "changes"),
    [("the split", {"val_frac": 0.2}), ("the tokenizer", {"train_vocab_size": 500})],
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
        overwrite=True,
    )
    pack(scored_copy, seq_len=SEQUENCE_TOKENS, policy="concat", overwrite=True)
    message = refused(lambda: resume(before, identity(scored_copy, entropy__source="reference")))
    assert "scores (fingerprint of entropy.scores): was" in message
    assert "pack (fingerprint of the packed corpus" in message


# --- the command itself: one error, no traceback, nothing left behind ---


def train(recipe: Path | str, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "training", "train", str(recipe), *overrides],
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
