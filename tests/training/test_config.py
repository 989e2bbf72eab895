"""A recipe is refused with every mistake named, or is exactly what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.layouts import tiny_recipe
from training.config.load import dump_recipe, load_recipe
from training.config.shipped import find_ds_config, find_recipe

GOOD = """
run_dir: runs/x
model: {config: {model_type: qwen3}}
data: {corpus: data/x, sequence_tokens: 128}
train: {global_batch_tokens: 1024}
optimizer: {lr: 1e-5}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_scientific_notation_is_a_number(tmp_path):
    assert load_recipe(write(tmp_path, GOOD)).optimizer.lr == 1e-5  # PyYAML reads a string


def test_scientific_notation_is_a_number_in_the_models_own_configuration_too(tmp_path):
    config = (
        "{model_type: qwen3, rms_norm_eps: 1e-5, rope_parameters: {rope_theta: 1E6, x: -.5e+1}}"
    )
    recipe = load_recipe(
        write(tmp_path, GOOD.replace("{model_type: qwen3}", config)),
        ["model.config.initializer_range=2e-2", "data.corpus='1e5'", "seed=1e3"],
    )
    assert recipe.model.config == {
        "model_type": "qwen3",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1e6, "x": -5.0},
        "initializer_range": 0.02,
    }
    assert (recipe.data.corpus, recipe.seed) == ("1e5", 1000)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_overrides_reach_any_depth_and_create_sections(tmp_path):
    recipe = load_recipe(
        write(tmp_path, GOOD), ["optimizer.lr=2e-4", "dropout.curriculum.kind=linear", "seed=7"]
    )
    assert (recipe.optimizer.lr, recipe.dropout.curriculum.kind, recipe.seed) == (2e-4, "linear", 7)


def test_every_mistake_is_named_at_once_with_the_nearest_key(tmp_path):
    text = GOOD.replace("lr:", "lrr:").replace("sequence_tokens", "sequence_token")
    with pytest.raises(ValueError) as caught:
        load_recipe(write(tmp_path, text), ["train.epochs=-1", "dropout.were=loss"])
    message = str(caught.value)
    assert "optimizer.lrr: unknown key; did you mean optimizer.lr?" in message
    assert "did you mean data.sequence_tokens?" in message
    assert "dropout.were: unknown key; did you mean dropout.where?" in message
    assert "train.epochs: Input should be greater than 0 (is -1)" in message


def test_keys_that_cannot_go_together_are_all_named_at_once(tmp_path):
    overrides = ["train.global_batch_tokens=1000", "teacher.kind=ema", "regularisers=[l2_sp]"]
    with pytest.raises(ValueError) as caught:
        load_recipe(write(tmp_path, GOOD), overrides)
    head, *mistakes = str(caught.value).split("\n  - ")
    assert head.endswith(":")
    assert [mistake.split(" ")[0] for mistake in mistakes] == [
        "regularisers:",
        "teacher.kind:",
        "train.global_batch_tokens",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.global_batch_tokens=1000", "nearest that work: 896, 1024"),
        ("train.sequence_parallel_size=3", "is not a multiple of"),
        ("regulariser=entrodrop2", "'none', 'entrodrop', 'random_token_dropout'"),
        ("model.pretrained=some/model", "exactly one of"),
        ("dropout.replace=mask_token", "mask_token_id"),
        ("extra_regulariser=hiden_dropout", "did you mean hidden_dropout?"),
        ("extra_regulariser=entrodrop", "regularisers: entrodrop is named twice"),
        ("regularisers=[]", "regularisers: name at least one"),
        ("evaluation.prompts=p.txt evaluation.every_steps=null", "every_steps is null"),
        ("regularisers=3", r"regularisers: expected a list, as in \[a, b\] \(is 3\)"),
        ("trackers=wandb", r"trackers: expected a list, as in \[a, b\] \(is 'wandb'\)"),
        ("regulariser=[rho1,neftune]", r"takes one name; for a list: regularisers: \[rho1, neft"),
        ("adapter=lora", r"adapter: expected keys and values, as in \{a: b\} \(is 'lora'\)"),
        ("regularisers=[mlp_dropuot]", "did you mean mlp_dropout?"),
        ("regularisers=[none,l2_sp]", "none stands alone; to use l2_sp, leave it out"),
        ("regularisers=[rho1,entrodrop]", "entrodrop and rho1 each decide which tokens drop"),
        ("regularisers=[l2_sp]", "l2_sp needs model.pretrained"),
        (
            "model.config=null model.pretrained=base regularisers=[l2_sp] "
            "baseline.l2_sp=9 optimizer.lr=0.2",
            r"l2_sp: 9 times optimizer\.lr 0\.2 is above 1: .*; set baseline\.l2_sp below 5$",
        ),
        ("optimizer.weight_decay=100 optimizer.lr=0.1", "optimizer.weight_decay: 100 times"),
        ("adapter.kind=qlora", "adapter.kind: qlora is not supported: ZeRO-3 shards plain"),
        ("regularisers=[mir]", "mir needs one that changes inputs: entrodrop, random"),
        ("regularisers=[mir,rho1]", "mir with rho1 has no meaning"),
        ("regularisers=[mir,eaft,neftune]", "mir with eaft would weight two passes"),
        (
            "regularisers=[mir,entrodrop] dropout.where=loss",
            "mir with entrodrop needs",
        ),
        (
            "regularisers=[entrodrop,token_replacement] entropy.source=cache",
            "token_replacement with entropy.source: cache",
        ),
        (
            "regularisers=[entrodrop,token_replacement,mir] entropy.source=cache",
            "token_replacement with entropy.source: cache",
        ),
        (
            "teacher.kind=scores teacher.scores=../x",
            r"teacher.scores: '\.\./x': use at most 64 let",
        ),
        ("teacher.kind=scores teacher.scores=''", "teacher.scores: '': use at most 64 letters"),
        ("entropy.scores=a/b", "entropy.scores: 'a/b': use at most 64 letters, digits"),
        ("regularisers=[eaft] teacher.kind=base", "teacher with regularisers: eaft"),
        ("dropout.softness=0.5 dropout.max_rate=0.6", "needs dropout.max_rate of at most 0.5"),
        (
            "dropout.softness=0.5 entropy.source=cache entropy.scope=corpus",
            "dropout.softness: 0.5 needs entropy.scope: batch",
        ),
        (
            "entropy.source=cache entropy.measure=nll extra_regulariser=label_smoothing",
            "nll of the training forward would be that of smoothed targets",
        ),
        ("run_dir=~/runs/x", "run_dir: ~ and \\$ are not expanded here; write the path out"),
        ("data.corpus=${SCRATCH}/x", "data.corpus: ~ and \\$ are not expanded here"),
        (
            "model.config=null model.pretrained=~/llama",
            "model.pretrained: ~ and \\$ are not expanded here",
        ),
        ("seed", "not of the form a.b=c"),
        ("seed=[", "override 'seed=\\['"),
    ],
)
def test_values_that_cannot_work_are_refused(tmp_path, override, expected):
    with pytest.raises(ValueError, match=expected):
        load_recipe(write(tmp_path, GOOD), override.split())


def test_on_before_a_colon_is_a_name(tmp_path):
    sections = "teacher: {kind: base, on: replay}\nreplay: {corpus: general, share: 0.2}\n"
    recipe = load_recipe(write(tmp_path, GOOD + sections))
    assert recipe.teacher.on == "replay"
    with pytest.raises(ValueError, match="duplicate key 'on'"):
        load_recipe(write(tmp_path, GOOD + sections.replace("on:", "'on': all, on:")))


def test_a_key_given_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="duplicate key 'run_dir'"):
        load_recipe(write(tmp_path, GOOD + "run_dir: other\n"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1", "just words"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        load_recipe(write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_the_dump_of_a_recipe_is_the_recipe(tmp_path):
    recipe = tiny_recipe(dropout__where="both", train__epochs=2.5)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_the_short_forms_of_the_list_of_regularisers(tmp_path):
    def names(text: str = "", *overrides: str) -> tuple[str, ...]:
        return load_recipe(write(tmp_path, GOOD + text), list(overrides)).regularisers

    assert names() == ("entrodrop",)
    assert names("regulariser: none\n") == names("", "regularisers=none") == ("none",)
    assert names("extra_regulariser: neftune\n") == ("entrodrop", "neftune")
    assert names("", "extra_regulariser=neftune", "regulariser=rho1") == ("rho1", "neftune")
    # an override takes the place of the other form, and the order of a list means nothing
    assert names("regulariser: none\n", "regularisers=[neftune,rho1]") == ("rho1", "neftune")
    assert names("regularisers: [neftune, rho1]\n", "regulariser=none") == ("none",)
    with pytest.raises(ValueError, match="regularisers and regulariser: set only regularisers"):
        names("regulariser: none\nregularisers: [rho1]\n")
    with pytest.raises(ValueError, match="none stands alone; to use neftune, leave it out"):
        names("", "extra_regulariser=neftune", "regulariser=none")


def test_an_old_name_of_a_key_works_and_is_reported_once(tmp_path, capsys):
    expected = load_recipe(write(tmp_path, GOOD), ["extra_regulariser=neftune"])
    for text, overrides in (
        (GOOD, ["beside=neftune"]),
        (GOOD + "beside: neftune\n", []),
        (GOOD + "beside: weight_decay\n", ["extra_regulariser=neftune"]),
        (GOOD + "extra_regulariser: weight_decay\n", ["beside=neftune"]),
    ):
        assert load_recipe(write(tmp_path, text), overrides) == expected
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("beside is now called extra_regulariser")
    with pytest.raises(ValueError, match="beside is the old name of extra_regulariser: set only"):
        load_recipe(write(tmp_path, GOOD + "beside: neftune\nextra_regulariser: neftune\n"))


def test_the_recipe_that_a_run_kept_is_read_without_a_word_of_its_old_names(tmp_path, capsys):
    kept = tmp_path / "recipe.resolved.yaml"
    kept.write_text(GOOD + "beside: weight_decay\n")
    assert load_recipe(kept).regularisers == ("entrodrop", "weight_decay")
    assert capsys.readouterr().err == ""


def test_a_folder_of_a_shipped_name_does_not_hide_the_recipe(tmp_path, monkeypatch):
    """As `entrodrop new quickstart` leaves one; a file of the user's own comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "zero3.json").write_text("{}")
    assert find_recipe("quickstart").name == "quickstart.yaml"
    assert find_ds_config("zero3.json") == Path("zero3.json")
    with pytest.raises(ValueError, match="recipe other: Is a directory"):
        find_recipe("other")
