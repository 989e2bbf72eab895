"""A sentencepiece model: what it changes and loses is said, and added tokens are transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from data_prep.shards import open_corpus
from data_prep.tokenizing.files import copy_tokenizer
from data_prep.tokenizing.spelling import changes_of
from data_prep.tokenizing.tokenizer import load_tokenizer

Cli = Callable[..., tuple[int, str, str]]
FOLDING = {"normalization_rule_name": "nmt_nfkc", "hard_vocab_limit": False}
# As Llama 2's.
EXACT = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}


@pytest.fixture
def train(tmp_path: Path, texts: list[str]) -> Callable[..., Path]:
    def make(name: str, **options: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        lines = [line for text in texts for line in text.split("\n") if line]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(folder / "tokenizer"),
            vocab_size=400,
            minloglevel=2,
            **options,
        )
        return folder

    return make


def test_a_model_that_folds_text_says_so_in_one_line(
    tmp_path: Path, train: Callable[..., Path], run_cli: Cli, write_jsonl: Callable[..., Path]
) -> None:
    source = write_jsonl(tmp_path / "docs.jsonl", ["the  tokens\nof a \uff53\uff41mple "] * 3)
    flags = ("--workers", 1, "--val-frac", 0, "--out", tmp_path / "corpus")
    code, _, error = run_cli(
        "build", "--input", source, "--tokenizer", train("folding", **FOLDING), *flags
    )
    assert code == 0, error
    changes = (
        "line ends and tabs become blanks",
        "several blanks become one",
        "blanks at the end are dropped",
        "compatible characters become one (NFKC)",
    )
    (line,) = [line for line in error.splitlines() if line.startswith("note: this tokenizer")]
    assert all(change in line for change in changes)
    manifest = open_corpus(tmp_path / "corpus").manifest
    assert set(changes) <= set(manifest.tokenizer.changes)
    assert manifest.ledger.num_documents_with_loss == 0


def test_a_model_with_bytes_changes_and_loses_nothing(
    train: Callable[..., Path], tricky: tuple[str, ...]
) -> None:
    tokenizer = load_tokenizer(train("exact", **EXACT))
    assert changes_of(tokenizer.round_trip.prepared) == ()
    for text, ids in zip(tricky, tokenizer.encode(tricky), strict=True):
        assert tokenizer.round_trip.loss(text, ids) is None, text


def test_unknown_characters_are_lost(train: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(train("folding", **FOLDING))
    text = "tokens of low ☃☃ entropy ♞"
    (ids,) = tokenizer.encode([text])
    loss = tokenizer.round_trip.loss(text, ids)
    assert loss is not None
    assert (loss.num_chars, loss.chars) == (3, "☃♞")


ADDED = {"<|im_start|>": 0, "<|im_end|>": 1}


def _with_added(folder: Path, **settings: Any) -> Path:
    first = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).vocab_size()
    added = {name: first + number for name, number in ADDED.items()}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    content = {"tokenizer_class": "LlamaTokenizer", "legacy": False, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("adds_bos", [False, True])
def test_an_added_eos_ends_documents_as_in_transformers(
    tmp_path: Path, train: Callable[..., Path], adds_bos: bool
) -> None:
    from transformers import AutoTokenizer

    folder = _with_added(
        train("exact", **EXACT),
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        add_bos_token=adds_bos,
    )
    reference = AutoTokenizer.from_pretrained(str(folder))
    ours = load_tokenizer(folder)
    special = ours.special_ids
    assert (special.bos, special.eos) == (reference.bos_token_id, reference.eos_token_id)
    assert special.eos == ours.vocab_size - 1 == len(reference) - 1
    text = "the entropy of tokens <|im_end|>"
    plain = ours.encode([text])[0].tolist()
    assert plain == reference(text, add_special_tokens=False, split_special_tokens=True).input_ids
    whole = [*special.document_prefix, *ours.encode(["the entropy"])[0].tolist()]
    assert whole == reference("the entropy").input_ids
    assert ours.decode([*plain, ours.vocab_size - 1]).endswith("<|im_end|><|im_end|>")
    copy_tokenizer(str(folder / "tokenizer.model"), to=tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").special_ids == special


def test_documents_of_a_build_end_with_the_added_eos(
    tmp_path: Path, train: Callable[..., Path], build_corpus: Callable[..., Path], write_jsonl
) -> None:
    folder = _with_added(
        train("exact", **EXACT),
        eos_token={"content": "<|im_end|>"},
        additional_special_tokens=["<|im_start|>"],
    )
    source = write_jsonl(tmp_path / "docs.jsonl", ["the tokens", "of low entropy"])
    corpus = open_corpus(build_corpus(source, tokenizer=str(folder)))
    assert corpus.document(0)[-1] == corpus.document(1)[-1] == corpus.vocab_size - 1


def test_added_tokens_that_transformers_finds_in_texts_are_refused(
    train: Callable[..., Path],
) -> None:
    folder = _with_added(train("exact", **EXACT), eos_token="<|im_end|>")
    with pytest.raises(
        ValueError, match=r"adds '<\|im_start\|>' to tokenizer.model as a token that"
    ):
        load_tokenizer(folder)


def test_ids_of_added_tokens_with_a_gap_are_refused(train: Callable[..., Path]) -> None:
    folder = _with_added(train("exact", **EXACT), eos_token="<|im_end|>")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 5000}))
    with pytest.raises(ValueError, match=r"with the ids \[5000\], expected \d+ and on"):
        load_tokenizer(folder)


def test_an_eos_among_the_pieces_of_the_model_is_taken_by_its_name(
    train: Callable[..., Path],
) -> None:
    folder = train("symbols", **{**EXACT, "control_symbols": ["<|end|>"]})
    for name, expected in (("<|end|>", 3), ("</s>", 2)):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": name}))
        assert load_tokenizer(folder).special_ids.eos == expected
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|other|>"}))
    with pytest.raises(ValueError, match=r"names the EOS '<\|other\|>', but neither"):
        load_tokenizer(folder)
