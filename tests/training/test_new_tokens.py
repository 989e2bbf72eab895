"""A model with rows for tokens added to its tokenizer: the old ones as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_prep.packing.pack import pack
from data_prep.tokenizing.training import train_tokenizer
from tests.distributed import run_ranks
from tests.training.model_folders import SIZES, TEXTS, build_corpus, train_bpe
from tests.training.refusals import refused
from tests.training.short_runs import SEQUENCE_TOKENS, short_recipe, train_on_rank
from training.checkpoints.export import export_run
from training.checkpoints.manifest import find_corruption
from training.checkpoints.new_tokens import add_tokens
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.weights import find_other_weights
from training.run.fit import check_vocabulary


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with as many rows as its tokenizer has ids."""
    folder = train_bpe(tmp_path_factory.mktemp("bases") / "base")
    size = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=size, **SIZES)).save_pretrained(folder)
    (folder / "LICENSE").write_text("of the base\n")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    added = AutoTokenizer.from_pretrained(base)
    added.add_tokens([f"<<term {number}>>" for number in range(5)])
    added.save_pretrained(folder)
    return folder


def test_a_corpus_with_new_tokens_trains_a_model_that_has_rows_for_them(base, tokenizer, tmp_path):
    out = tmp_path / "larger"
    assert add_tokens(base, tokenizer=tokenizer, out=out) == 640
    old, new = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, out))
    before, after = (lm.get_input_embeddings().weight for lm in (old, new))
    assert torch.equal(after[: len(before)], before)
    torch.testing.assert_close(after[-1], before.mean(dim=0), atol=1e-2, rtol=0)
    assert (out / "LICENSE").read_text() == "of the base\n"
    corpus = build_corpus(tmp_path / "corpus", out)
    for folder, fits in ((out, True), (base, False)):
        model = Model(pretrained=str(folder))
        config = resolve_model_config(model, vocab_size=corpus.vocab_size, dtype=torch.float32)
        assert find_other_weights(model, config) is None
        if fits:
            check_vocabulary(config, corpus)
        else:
            assert "smaller than the corpus's" in refused(
                lambda c=config: check_vocabulary(c, corpus)
            )


def test_its_run_is_exported_in_files_of_a_size_with_terms_templates_and_all_rows(
    base, tokenizer, tmp_path, monkeypatch
):
    with_templates = Path(shutil.copytree(tokenizer, tmp_path / "t"))
    (with_templates / "chat_template.jinja").write_text("{{ messages }}")
    (with_templates / "additional_chat_templates").mkdir()
    (with_templates / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    monkeypatch.setattr("training.checkpoints.new_tokens.FILE_SIZE", "30KB")
    monkeypatch.setattr("training.checkpoints.export.FILE_SIZE", "30KB")
    out, run_dir = tmp_path / "larger", tmp_path / "run"
    add_tokens(base, tokenizer=with_templates, out=out)
    corpus = build_corpus(tmp_path / "corpus", out)
    pack(corpus.folder, seq_len=SEQUENCE_TOKENS)
    changes = {
        "model": {"pretrained": str(out)},
        "train__max_steps": 1,
        "train__sequence_parallel_size": 1,
        "evaluation": {"every_steps": None},
    }
    run_ranks(
        train_on_rank, short_recipe(corpus.folder, run_dir, world_size=1, **changes), world_size=1
    )
    folder = export_run(run_dir)
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert len(again.get_input_embeddings().weight) == again.config.vocab_size == 640
    found = AutoTokenizer.from_pretrained(folder)
    assert found.convert_tokens_to_ids("<<term 4>>") == len(found) - 1
    assert found.chat_template == {"default": "{{ messages }}", "tool": "{{ tools }}"}
    assert (folder / "LICENSE").read_text() == "of the base\n"
    assert "| licence of the base | mit |" in (folder / "README.md").read_text()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("*.safetensors")}
    assert {*index["weight_map"].values()} == files and len(files) > 1
    assert find_corruption(folder, hashes=True) is None


def test_what_cannot_be_is_refused_and_leaves_nothing(base, tokenizer, tmp_path):
    out = tmp_path / "out"
    assert "train it as it is" in refused(lambda: add_tokens(base, tokenizer=base, out=out))
    other = tmp_path / "other"
    train_tokenizer(TEXTS[1:], algorithm="bpe", vocab_size=610, to=other)
    told = refused(lambda: add_tokens(base, tokenizer=other, out=out))
    assert f"{other} is not the tokenizer of {base} with tokens added" in told
    absent = tmp_path / "absent"
    assert "there is no folder" in refused(lambda: add_tokens(absent, tokenizer=base, out=out))
    assert "exists" in refused(lambda: add_tokens(base, tokenizer=tokenizer, out=base))
    assert not out.exists() and not list(tmp_path.glob(".staging-*"))
