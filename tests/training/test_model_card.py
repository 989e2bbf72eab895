"""The card of an export: data, settings and held-out losses, and nothing that is not known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from data_prep.shards import open_corpus
from tests.training.short_runs import metrics
from training.checkpoints.export import load_run_recipe
from training.checkpoints.manifest import newest_complete, read_manifest
from training.checkpoints.model_card import write_model_card
from training.config.recipe import Recipe


def card_of(of_run: Path, folder: Path, **changes: Any) -> str:
    """Written anew, of the run's newest checkpoint."""
    folder.mkdir(exist_ok=True)
    newest = newest_complete(of_run / "checkpoints")
    assert newest is not None
    arguments = {"run_dir": of_run, "mix": {}, "manifest": read_manifest(newest)} | changes
    recipe = arguments.pop("recipe", None) or load_run_recipe(of_run)
    write_model_card(folder, recipe, **arguments)
    return (folder / "README.md").read_text()


def section(card: str, title: str) -> str:
    """The text under a heading; empty where there is none."""
    return card.partition(f"\n## {title}")[2].partition("\n## ")[0]


def test_the_data_are_those_of_the_corpus_s_ledger(exported, small_corpus):
    data = section((exported / "README.md").read_text(), "Data\n")
    manifest = json.loads((small_corpus / "manifest.json").read_text())
    for domain in manifest["domains"]:
        for split, part in domain["ledger"]["by_split"].items():
            counts = f"{part['num_documents']} | {part['num_tokens']}"
            assert f"| {domain['name']} | {split} | {counts} |" in data
    assert "Tokenizer: bpe trained on this corpus (huggingface), 512 tokens." in data


def test_the_losses_are_those_of_the_exported_step(exported):
    last = metrics(exported.parent, "evaluation")[-1]
    losses = section((exported / "README.md").read_text(), "Held-out losses at step 8\n")
    assert f"| held-out | all | {last['loss']:.4f} | {last['num_targets']} |" in losses
    for band in last["bands"]:
        entropies = f"{band['from_nats']:.2f} to {band['to_nats']:.2f}"
        assert f"| {entropies} | {band['loss']:.4f} | {band['num_targets']} |" in losses


def test_the_settings_are_the_recipe_s_and_name_no_folder(exported, small_corpus):
    card = (exported / "README.md").read_text()
    settings = yaml.safe_load(section(card, "Settings\n").partition("```yaml\n")[2].strip("`\n"))
    recipe = yaml.safe_load((exported.parent / "recipe.resolved.yaml").read_text())
    assert settings["regularisers"] == ["entrodrop"]
    for name in ("dropout", "entropy", "optimizer", "schedule"):
        assert settings[name] == recipe[name]
    assert settings["train"]["global_batch_tokens"] == 512
    assert "baseline" not in settings and "adapter" not in settings
    assert str(small_corpus.parent) not in card


def test_each_set_has_its_losses(exported, tmp_path):
    bands = [{"band": 1, "from_nats": 0.0, "to_nats": 2.5, "loss": None, "num_targets": 0}]
    sets = {
        "own|text": {"loss": 1.5, "num_targets": 7, "bands": bands},
        "general": {"loss": 2.25, "num_targets": 9},
    }
    row = {"kind": "evaluation", "step": 8, "loss": 1.5, "sets": sets}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    losses = section(card_of(exported.parent, tmp_path / "card", run_dir=tmp_path), "Held-out")
    assert "| own\\|text | all | 1.5000 | 7 |\n| general | all | 2.2500 | 9 |\n" in losses
    assert "2.50" not in losses


@pytest.mark.parametrize("metrics_text", [None, "broken", '{"kind": "evaluation", "step": 6}\n'])
def test_what_is_not_known_is_left_out(exported, tmp_path, metrics_text):
    run_dir = exported.parent
    if metrics_text is not None:
        (tmp_path / "metrics.jsonl").write_text(metrics_text)
    newest = newest_complete(run_dir / "checkpoints")
    assert newest is not None
    manifest = read_manifest(newest)
    other = manifest | {"identity": manifest["identity"] | {"pack": "of another corpus"}}
    card = card_of(run_dir, tmp_path / "card", run_dir=tmp_path, manifest=other)
    assert "## Settings" in card
    for absent in ("## Held-out", "## Data", "licence of the base", "None", "nan"):
        assert absent not in card


def test_a_mix_has_no_losses_of_a_checkpoint(exported, tmp_path):
    mix = {"mix": {"weights": "trained", "steps": [6, 8], "tuned_share": 1.0}}
    assert "eld-out" not in card_of(exported.parent, tmp_path / "card", mix=mix)


def test_the_base_s_licence_and_the_chosen_strengths_are_named(exported, tmp_path):
    recipe = load_run_recipe(exported.parent)
    model = replace(recipe.model, pretrained="org/base", config=None)
    recipe = replace(recipe, model=model, regularisers=("eaft", "label_smoothing"))
    folder = tmp_path / "card"
    folder.mkdir()
    text = "---\nlicense: other\nlicense_name: own-terms\nlicense_link: LICENSE\n---\n# Base\n"
    (folder / "README.md").write_text(text)
    card = card_of(exported.parent, folder, recipe=recipe)
    assert card.startswith("---\nlicense: other\nlicense_name: own-terms\nlicense_link: LICENSE\n")
    assert "base_model: org/base\n" in card
    assert "| began from | org/base |\n| licence of the base | own-terms |" in card
    strengths = "baseline:\n  label_smoothing: 0.1\n  eaft_full_nats: 3.0\n  eaft_side: high\n"
    assert strengths in card and "dropout:" not in card


def with_base(of_run: Path, base: str) -> Recipe:
    recipe = load_run_recipe(of_run)
    return replace(recipe, model=replace(recipe.model, pretrained=base, config=None))


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("/home/alice/gone/base", "base"),
        ("../alice/base", "base"),
        ("./base", "base"),
        ("alice/gone/base", "base"),
        ("C:\\alice\\base", "base"),
        ("tests/training", "training"),  # a folder that is there
        ("org/base-1.5", "org/base-1.5"),
        ("gpt2", "gpt2"),
    ],
)
def test_only_a_name_of_the_hub_is_named_in_full(exported, tmp_path, monkeypatch, base, named):
    monkeypatch.chdir(Path(__file__).parents[2])
    card = card_of(exported.parent, tmp_path / "card", recipe=with_base(exported.parent, base))
    assert f"| began from | {named} |" in card
    assert ("base_model: " in card) == (base == named) and "alice" not in card


def test_the_tokenizer_s_folder_is_not_told(exported, tmp_path, monkeypatch):
    corpus = open_corpus(load_run_recipe(exported.parent).data.corpus)
    tokenizer = corpus.manifest.tokenizer.model_copy(update={"source": "../alice/tokens"})
    manifest = corpus.manifest.model_copy(update={"tokenizer": tokenizer})
    moved = SimpleNamespace(manifest=manifest, vocab_size=corpus.vocab_size)
    monkeypatch.setattr("training.checkpoints.model_card._corpus_of", lambda *_: moved)
    data = section(card_of(exported.parent, tmp_path / "card"), "Data\n")
    assert "Tokenizer: tokens (" in data and "alice" not in data


@pytest.mark.parametrize(
    "result",
    [
        {"loss": 1.5},
        {"loss": "low", "num_targets": 7},
        {"loss": [1.5], "num_targets": 7},
        {"loss": 1.5, "num_targets": 7, "bands": [{"band": 1}]},
        {"sets": {"own": 1.5}},
        {"sets": [1.5]},
    ],
)
def test_rows_of_another_program_leave_the_table_out(exported, tmp_path, result):
    row = {"kind": "evaluation", "step": 8, **result}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    card = card_of(exported.parent, tmp_path / "card", run_dir=tmp_path)
    assert "## Held-out" not in card and "## Settings" in card


@pytest.mark.parametrize(
    "text", ["\ufeff---\nlicense: mit\n---\n# Base\n", "---\nlicense: mit\n---"]
)
def test_the_licence_is_kept_of_cards_with_odd_ends(exported, tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert card_of(exported.parent, tmp_path).startswith("---\nlicense: mit\n")


def test_the_top_has_one_heading_and_a_loss_as_below_it(exported, tmp_path):
    recipe = replace(load_run_recipe(exported.parent), run_dir="runs/two\n## lines")
    card = card_of(exported.parent, tmp_path / "card", recipe=recipe)
    assert "\n# two ## lines\n" in card
    loss = metrics(exported.parent, "evaluation")[-1]["loss"]
    assert f"| held-out loss (nats a token) | {loss:.4f} |" in card
