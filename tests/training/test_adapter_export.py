"""The export of an adapter, alone and merged, and what evaluates either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.adapter_runs import DORA, LORA, adapter_recipe, plain_steps, trained
from tests.training.short_runs import (
    metrics,
    short_recipe,
    train_with_changes,
    training_command,
)
from training.checkpoints.adapter_folder import read_adapter
from training.checkpoints.ema_files import read_average
from training.checkpoints.export import Form, export_run
from training.checkpoints.manifest import find_corruption
from training.checkpoints.mixing import load_masters
from training.checkpoints.public_names import find_place, local_base, name_base
from training.config.load import load_recipe
from training.config.recipe import Recipe
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.generation import ExportedModel, Sampling
from training.ranks.dist import Layout
from training.run.evaluate_run import evaluate_run
from training.run.start import check_start
from training.tasks.weights import find_weights

LAST = "step-00000006"
ALONE = Layout(rank=0, world_size=1, sp_size=1, device=torch.device("cpu"))
NOTE = {"special_tokens_map_file": "/home/alice/map.json"}


@pytest.fixture(scope="module")
def run(adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `adapted` with its adapter in `export` and the whole model in `merged`."""
    run_dir = Path(shutil.copytree(adapted, tmp_path_factory.mktemp("adapter") / "run"))
    assert "adapter_config.json" in {path.name for path in export_run(run_dir).iterdir()}
    settings = run_dir / "model" / "tokenizer_config.json"  # as older tokenizers have them
    settings.write_text(json.dumps(json.loads(settings.read_text()) | NOTE))
    export_run(run_dir, form=Form(merge=True), out=run_dir / "merged")
    return run_dir


def beside(base: Path, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


@torch.no_grad()
def logits_of(lm: Any) -> torch.Tensor:
    ids = torch.arange(40)[None] * 11 % 500
    return lm(input_ids=ids).logits[0]


def test_plain_peft_loads_the_trained_model(run, adapted, exported, small_corpus):
    """Its logits are those of the same steps by peft alone, and the merged model's."""
    _, reference = plain_steps(adapter_recipe(small_corpus, exported, adapted, LORA))
    alone, base = logits_of(beside(exported, run / "export")), logits_of_folder(exported)
    assert (alone - base).abs().max() > 0.1
    torch.testing.assert_close(alone, logits_of(reference.eval()), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits_of_folder(run / "merged"), alone, rtol=1e-4, atol=1e-4)
    weights = load_masters(run / "checkpoints" / LAST)
    found = read_adapter(run / "export")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def logits_of_folder(folder: Path) -> torch.Tensor:
    return logits_of(AutoModelForCausalLM.from_pretrained(folder).eval())


def test_a_card_says_what_the_folder_is(run):
    alone, merged = ((run / name / "README.md").read_text() for name in ("export", "merged"))
    assert "library_name: peft" in alone and "library_name: transformers" in merged
    assert "| adapter | lora, rank 4 |" in alone and "| adapter | lora, rank 4 |" in merged


def test_only_an_adapter_names_a_folder_its_base_which_can_get_a_public_name(
    run, exported, tmp_path
):
    settings = (run / "merged" / "tokenizer_config.json").read_text()
    assert json.loads(settings) == json.loads((exported / "tokenizer_config.json").read_text())
    assert local_base(run / "merged") is None
    assert local_base(run / "export") == str(exported)
    copy = Path(shutil.copytree(run / "export", tmp_path / "copy"))
    for name, path in name_base(copy, "org/base", to=tmp_path).items():
        shutil.copy(path, copy / name)
    assert find_corruption(copy, hashes=True) is None and local_base(copy) is None
    assert find_place(copy) is None
    alone, public = logits_of(beside(exported, run / "export")), logits_of(beside(exported, copy))
    assert torch.equal(alone, public)


def test_an_adapter_writes_what_the_merged_model_writes(run, exported):
    def written(folder: Path) -> str:
        model = ExportedModel.load(folder, Sampling(temperature=0, max_new_tokens=12))
        return model.complete("import")

    assert written(run / "export") == written(run / "merged") != written(exported)


def test_without_peft_the_extra_is_named(run, exported, small_corpus, monkeypatch, tmp_path):
    monkeypatch.setattr("training.model.adapter.find_spec", lambda _: None)
    told = r"adapter needs peft: pip install '\.\[adapters\]' in the checkout"
    with pytest.raises(ValueError, match=told):
        export_run(run, out=tmp_path / "export")
    with pytest.raises(ValueError, match=told):
        ExportedModel.load(run / "export", Sampling(temperature=0, max_new_tokens=1))
    with pytest.raises(ValueError, match=told):
        check_start(adapter_recipe(small_corpus, exported, tmp_path / "run", LORA), ALONE)


FORMS = ["alone", *(("merged", "ema") if WHOLE else ())]


@pytest.mark.parametrize("form", FORMS)
def test_evaluate_has_the_losses_of_the_run(run, tmp_path, form):
    last = metrics(run, "evaluation")[-1]
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    export_run(copy, form=Form(merge=form == "merged"), averaged=form == "ema")
    (result,) = run_ranks(evaluate_run, copy, [], world_size=1)
    expected = last["ema_loss" if form == "ema" else "loss"]
    assert result["loss"] == pytest.approx(expected, rel=1e-5)
    assert ("mix" in result) is (form == "ema")


def test_the_average_of_an_adapter_is_exported(run, tmp_path):
    folder = export_run(run, averaged=True, out=tmp_path / "export")
    average, found = read_average(run / "checkpoints" / LAST), read_adapter(folder)
    assert all(torch.equal(weight, average[name]) for name, weight in found.items())
    weights = read_adapter(run / "export")
    assert not any(torch.equal(weight, weights[name]) for name, weight in found.items())


def test_weights_between_base_and_adapter_are_those_of_whole_models(run, exported, tmp_path):
    """Both ends have the losses of the run, and an export is the middle of two whole models."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    told = training_command("interpolate", str(copy), "--shares=0,1").stdout
    between = " --interpolate-base 0" if "lowest at 0:" in told else ""
    export = f"python -m training export {copy} --merge{between}"
    assert told.rstrip().endswith(export)
    first, *_, last = metrics(run, "evaluation")
    rows = json.loads((copy / "interpolation.json").read_text())["rows"]
    assert rows[0]["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert rows[1]["loss"] == pytest.approx(last["loss"], rel=1e-5)
    merged, base = (load_file(path / "model.safetensors") for path in (run / "merged", exported))
    middle = export_run(copy, tuned_share=0.5, form=Form(merge=True), out=tmp_path / "middle")
    for name, weight in load_file(middle / "model.safetensors").items():
        torch.testing.assert_close(weight, (merged[name] + base[name]) / 2, rtol=1e-5, atol=1e-6)
    mean = export_run(
        copy, checkpoints=["step-3", "step-6"], form=Form(merge=True), out=tmp_path / "mean"
    )
    third = export_run(copy, checkpoints=["step-3"], form=Form(merge=True), out=tmp_path / "third")
    name = "model.layers.0.mlp.up_proj.weight"
    at_3, halfway = (load_file(path / "model.safetensors")[name] for path in (third, mean))
    assert (at_3 - merged[name]).abs().max() > 1e-3
    torch.testing.assert_close(halfway, (at_3 + merged[name]) / 2, rtol=1e-5, atol=1e-6)


def test_dora_in_bf16_is_exported_alone_and_merged(exported, small_corpus, tmp_path):
    """With recomputed activations; the merged weights are rounded once."""
    recipe = adapter_recipe(
        small_corpus,
        exported,
        tmp_path / "run",
        DORA | {"dropout": 0.1},
        deepspeed="ds_configs/zero3.json",
        model={"pretrained": str(exported), "activation_checkpointing": True},
        train__max_steps=3,
        train__sequence_parallel_size=1,
        evaluation={"every_steps": None},
    )
    rows = trained(recipe, world_size=1)
    assert all(row["updated"] for row in rows)
    folder = export_run(tmp_path / "run", out=tmp_path / "alone")
    assert {weight.dtype for weight in read_adapter(folder).values()} == {torch.bfloat16}
    merged = export_run(tmp_path / "run", form=Form(merge=True), out=tmp_path / "merged")
    alone, whole = logits_of(beside(exported, folder)), logits_of_folder(merged)
    moved = (alone - logits_of_folder(exported)).abs().max()
    assert moved > 0.03
    assert (whole.float() - alone).abs().max() < moved


@pytest.mark.parametrize(
    "options", [{"tuned_share": 0.5}, {"checkpoints": ["step-3", "step-6"]}], ids=str
)
def test_an_adapter_that_would_be_none_is_refused(run, tmp_path, options):
    with pytest.raises(ValueError, match="make weights that are no adapter's: add --merge"):
        export_run(run, out=tmp_path / "export", **options)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("alpha: 8", "alpha: 16"), "adapter.alpha: was 8, is 16"),
        (("rank: 4", "rank: 8"), "adapter.rank: was 4, is 8"),
        (("kind: lora", "kind: dora"), "adapter.kind: was 'lora', is 'dora'"),
        (("targets: all-linear", "targets: [q_proj]"), "adapter.targets: was 'all-linear', is"),
        (None, "adapter.alpha: was 8, is None; adapter.kind: was 'lora', is None"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_adapter_is_refused(run, tmp_path, change, told):
    """As one from before an accepted change, or of another run with the same base."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    kept = copy / "recipe.resolved.yaml"
    text = kept.read_text()
    if change is None:
        section = text[text.index("adapter:") : text.index("replay:")]
        kept.write_text(text.replace(section, "adapter: null\n"))
    else:
        assert change[0] in text
        kept.write_text(text.replace(*change))
    other = str(run / "checkpoints" / LAST)
    form = Form(merge=change is not None)
    for words in ((), ["step-3"], [other], ["step-3", other]):
        with pytest.raises(ValueError, match=f"has another adapter than .*{told}"):
            export_run(copy, checkpoints=words, form=form, out=tmp_path / "export")
    assert not (tmp_path / "export").exists()
    done = training_command("interpolate", str(copy), "--shares=1", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr and "Traceback" not in done.stderr


def test_a_run_without_an_adapter_has_none_to_merge(finished, tmp_path):
    with pytest.raises(ValueError, match="--merge: this run has no adapter"):
        export_run(finished, form=Form(merge=True), out=tmp_path / "export")


def test_a_base_that_has_changed_is_refused(run, exported, tmp_path):
    """By the exports, by a resume, and by evaluate."""
    base = Path(shutil.copytree(exported, tmp_path / "base"))
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    kept = copy / "recipe.resolved.yaml"
    kept.write_text(kept.read_text().replace(str(exported), str(base)))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1.0
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    told = "no longer holds the weights that this run began with"
    for merge in (False, True):
        with pytest.raises(ValueError, match=told):
            export_run(copy, form=Form(merge=merge), out=tmp_path / "export")
    recipe = load_recipe(kept, [f"run_dir={copy}", "train.sequence_parallel_size=1"])
    messages = run_ranks(messages_of_errors, recipe, world_size=1)[0]
    assert "base_weights (fingerprint of the weights of model.pretrained): was" in messages[0]
    assert told in messages[1]


def messages_of_errors(recipe: Recipe) -> list[str]:
    """Of a resume, and of an evaluation."""
    with pytest.raises(ValueError) as resumed:
        train_with_changes(recipe, ["recipe.model.pretrained"])
    with pytest.raises(ValueError) as evaluated:
        evaluate_run(Path(recipe.run_dir), [])
    return [str(caught.value) for caught in (resumed, evaluated)]


def test_tasks_are_asked_of_the_whole_model(run):
    assert find_weights(run, checkpoint=None).checkpoint is not None  # to be merged
    assert find_weights(run / "merged", checkpoint=None).step == 6
    with pytest.raises(ValueError, match="is an adapter, and tasks need a whole model"):
        find_weights(run / "export", checkpoint=None)


def test_an_adapter_is_no_base(run):
    model = Model(pretrained=str(run / "export"))
    with pytest.raises(ValueError, match="is an adapter; merge it with its base first"):
        resolve_model_config(model, vocab_size=512, dtype=torch.float32)


def test_an_adapter_needs_a_base(small_corpus, tmp_path):
    with pytest.raises(ValueError, match=r"adapter needs weights to train beside: set model\.pre"):
        short_recipe(small_corpus, tmp_path, adapter=LORA)
