"""An exported tokenizer gives the corpus's ids in transformers, whatever class its files name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from tests.training.model_folders import (
    LLAMA2,
    TEXTS,
    assert_it_gives_the_ids_of_the_corpus,
    build_corpus,
    made,
    train_bpe,
    train_sentencepiece,
)
from training.model.tokenizers import PROBES


def with_own_rules(folder: Path, class_name: str | None) -> Path:
    """Digits one by one, and texts in NFC, under a class with other rules."""
    train_bpe(folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": class_name}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return folder


CLASSES = ["Qwen2Tokenizer", "GPT2Tokenizer", "GemmaTokenizer", "CohereTokenizer"]
CLASSES += ["CodeLlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", None]


@pytest.mark.parametrize("class_name", CLASSES)
def test_rules_of_a_tokenizer_json_hold_under_any_class(tmp_path, class_name):
    corpus = build_corpus(tmp_path, with_own_rules(tmp_path / "t", class_name))
    for model_type in ("qwen3", "llama"):
        folder = made(corpus, tmp_path / model_type, model_type=model_type)
        assert_it_gives_the_ids_of_the_corpus(folder, corpus)
        kept = (corpus.tokenizer_dir / "tokenizer.json").read_bytes()
        assert (folder / "tokenizer.json").read_bytes() == kept


@pytest.mark.parametrize("trusts", [False, True])
def test_rules_hold_where_transformers_ignores_the_class_that_is_named(
    tmp_path, imported_code, trusts
):
    """It takes the one of the model's type, whose rules are for Qwen's own tokenizer."""
    corpus = build_corpus(tmp_path, with_own_rules(tmp_path / "t", "PreTrainedTokenizerFast"))
    folder = made(corpus, tmp_path / "model", model_type="qwen2")
    assert_it_gives_the_ids_of_the_corpus(folder, corpus, trust_remote_code=trusts)


FOLDING = {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"}
SETTINGS = {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}


@pytest.mark.parametrize("options", [LLAMA2, FOLDING], ids=["llama2", "folding"])
@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["alone", "with_settings"])
def test_a_sentencepiece_model_reads_every_text_as_the_corpus_does(tmp_path, options, settings):
    """Also where it folds letters and spaces."""
    tokenizer = train_sentencepiece(tmp_path / "t", **options)
    if settings:
        (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    corpus = build_corpus(tmp_path, tokenizer)
    prefix = [1] if settings else []
    for model_type in ("llama", "qwen3", "qwen2"):
        found = AutoTokenizer.from_pretrained(
            made(corpus, tmp_path / model_type, model_type=model_type)
        )
        for text in [*PROBES, *TEXTS]:
            (ids,) = corpus.tokenizer.encode([text])
            assert found.encode(text) == [*prefix, *ids.tolist()]


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "mistral", "olmo2"])
@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_tokenizer_of_our_own_is_complete(tmp_path, algorithm, model_type):
    corpus = build_corpus(tmp_path, algorithm)
    folder = made(corpus, tmp_path / "model", model_type=model_type)
    assert_it_gives_the_ids_of_the_corpus(folder, corpus)
    eos = corpus.manifest.special_ids.eos
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == eos
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == eos
