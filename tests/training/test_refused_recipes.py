"""Recipes that cannot be meant: a value or a byte of them, and what is said."""

from __future__ import annotations

import json

import pytest

from tests.training.refusals import refused
from training.config.load import load_recipe

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
    ("train.max_steps=yes", "train.max_steps: must not be a boolean (is True)"),
    ("train.micro_batch_samples=0", "greater than or equal to 1 (is 0)"),
    ("train.sequence_parallel_size=0", "greater than or equal to 1 (is 0)"),
    ("train.gradient_clipping=0", "greater than 0 (is 0)"),
    ("train.z_loss=-1", "greater than or equal to 0 (is -1)"),
    ("train.stop_after_steps=-3", "greater than or equal to 1 (is -3)"),
    ("train.global_batch_tokens=1e3", "train.global_batch_tokens 1000 is not a multiple of"),
    ("data.sequence_tokens=1", "greater than or equal to 2 (is 1)"),
    ("seed=-1", "seed: Input should be greater than or equal to 0 (is -1)"),
    ("seed=99999999999999999999", "seed: Input should be less than 1"),
    ("seed=true", "seed: must not be a boolean (is True)"),
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
    ("data.verify=no", "data.verify: must not be a boolean (is False)"),
    ("data.verify=size", "data.verify: Input should be 'hashes' or 'sizes' (is 'size')"),
    ("schedule.kind=cosin", "'cosine', 'wsd' or 'constant' (is 'cosin')"),
    ("entropy.source=onlin", "'online', 'reference' or 'cache' (is 'onlin')"),
    ("dropout.where=inputs", "'input', 'loss' or 'both' (is 'inputs')"),
    ("guard.on_spike=warn", "'report', 'skip', 'rollback' or 'stop' (is 'warn')"),
    ("resume=always", "'auto' or 'never' (is 'always')"),
    ("evaluation.every_steps=often", "unable to parse string as an integer (is 'often')"),
    # sections
    ("data=3", "data: expected keys and values, as in {a: b} (is 3)"),
    ("model=null", "model: expected keys and values, as in {a: b}"),
    ("model.config=qwen3", "model.config: Input should be a valid dictionary (is 'qwen3')"),
    ("model.config={}", "model.config needs the key model_type, for example qwen3"),
    ("data.mixture=[]", "data.mixture: Input should be a valid dictionary"),
    ("data.mixture={notes: 3}", "data.mixture.notes: expected keys and values, as in {a: b}"),
    # names
    ("optimiser.lr=1", "optimiser: unknown key; did you mean optimizer?"),
    ("lr=1", "\n  - lr: unknown key; did you mean optimizer.lr?"),
    ("every_steps=1", "did you mean evaluation.every_steps or checkpoint.every_steps?"),
    ("evaluation.best_by=x", "\n  - evaluation.best_by: no held-out set 'x'"),
    ("optimizer.betas=[0.9, 0.9]", "did you mean optimizer.beta2?"),
    ("train.max_step=3", "did you mean train.max_steps?"),
    ("data.sequence_token=3", "did you mean data.sequence_tokens?"),
    ("q..b=3", "q: unknown key; valid: run_dir, model,"),
    ("data.mixture={notes: {epoch: 1}}", "did you mean data.mixture.notes.epochs?"),
    # what does not fit together
    ("train.global_batch_tokens=64", "nearest that work: 128"),
    ("train.sequence_parallel_size=3", "nearest sequence_tokens that work: 126, 129"),
    ("data.mixture={notes: {}}", "set exactly one of epochs and proportion"),
    ("entropy.scope=corpus", "needs entropy.source: reference or cache (is online)"),
    ("dropout.side=middle", "dropout.side: Input should be"),
    ("dropout.guidance=1.5", "dropout.guidance: Input should be less than or equal to 1"),
    ("entropy.threshold=lagged", "and dropout.where: loss (are online and input)"),
    # YAML
    ("seed={{a: b}: c}", "expected a name before the colon"),
    ("seed={a: 1, a: 2}", "duplicate key 'a'"),
    ("seed=!!python/object/apply:os.getpid []", "could not determine a constructor"),
    ("=3", "override '=3' is not of the form a.b=c"),
]

FILES = [
    # (what is broken, bytes of the recipe, what is said)
    (
        "not valid UTF-8",
        RECIPE.encode() + b"seed: \xff\n",
        "not valid UTF-8: invalid start byte at byte",
    ),
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


@pytest.mark.parametrize(("override", "told"), VALUES, ids=[row[0] for row in VALUES])
def test_a_recipe_with_a_wrong_value_is_refused(tmp_path, override, told):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert load_recipe(path)
    assert told in refused(lambda: load_recipe(path, [override]))


def set_of(**data: str) -> str:
    return f"evaluation.sets={json.dumps({'general': {'split': 'train', **data}})}"


REPLAY = "replay={corpus: data/r, share: 0.5}"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([set_of()], "data.corpus"),
        ([set_of(corpus="data/x")], "data.corpus"),
        ([set_of(corpus="./data/../data/x/")], "data.corpus"),
        ([set_of(domain="web")], "data.corpus"),
        ([set_of(domain="web"), "data.mixture={notes: {epochs: 0}}"], "data.corpus"),
        ([set_of(corpus="data/r"), REPLAY], "replay.corpus"),
        ([set_of(corpus="data/r", domain="web"), REPLAY], "replay.corpus"),
    ],
)
def test_a_set_that_is_trained_on_is_refused(tmp_path, overrides, key):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    said = refused(lambda: load_recipe(path, overrides))
    assert f"evaluation.sets.general.split: train is trained on, as {key}: take val" in said


@pytest.mark.parametrize(
    "overrides",
    [
        [set_of(corpus="data/y"), REPLAY],
        [set_of(corpus="data/r")],
        [set_of(split="val"), REPLAY],
        [set_of(split="val", corpus="data/r"), REPLAY],
        [set_of(domain="web"), "data.mixture={web: {epochs: 0}}"],
    ],
)
def test_a_set_that_is_not_trained_on_is_accepted(tmp_path, overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert load_recipe(path, overrides).evaluation.sets


def test_a_threshold_of_the_corpus_does_not_go_with_replay(tmp_path):
    """It would be that of text of which most is not trained on."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    of_corpus = ["entropy.scope=corpus", "entropy.source=cache"]
    assert load_recipe(path, of_corpus)
    said = refused(lambda: load_recipe(path, [*of_corpus, REPLAY]))
    assert "entropy.scope: corpus with replay" in said
    assert said.endswith("set entropy.scope: batch, or replay: null")


@pytest.mark.parametrize(("content", "told"), [row[1:] for row in FILES], ids=[r[0] for r in FILES])
def test_a_damaged_recipe_is_refused_by_its_name(tmp_path, content, told):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    message = refused(lambda: load_recipe(path))
    assert told in message
    assert str(path) in message
