"""The families of tokenizers that people use, token for token as their own libraries encode."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as make
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_prep.tokenizing.long_text import KNOWN_PATTERNS
from data_prep.tokenizing.tokenizer import load_tokenizer

GPT2, LLAMA3, QWEN2 = sorted(KNOWN_PATTERNS)
HARD = (
    "\u0301\u0301 marks with nothing before them, e\u0301 and \u00e9",
    "\u200d\u200c joiners \ufe0f\ufeff and a mark \u2060",
    "\U00020000\U0001f1e9\U0001f1ea \U0001d504\U0001d505 beyond the first plane",
    "شكرا جزيلا תודה רבה \u202eright to left\u202c",
    "line\u2028paragraph\u2029next\x85end\x0b\x0c",
    "\t\ttabs \t and blanks at the end   \t\n  ",
    "12345 ١٢٣٤ ²³ ½ Ⅷ 一二三",
    "It's WE'LL they'RE \u0131'S \u0130 \u017f '\u017f \u212a",
    "<s> </s> <|endoftext|> <|im_start|> [CLS] [SEP] <unk> <0x0A> ▁ Ġ",
    "a<sep>b <sep> <think>x</think>\n<think> é<think>e\u0301",
    "\ufb01 \u00c5 \u212b が か\u3099 ㌀ \uff46\uff55\uff4c\uff4c ª",
    "y" * 100_000,
    "ab " * 20_000,
    "\r\n\r\r\n \r \n\n",
    " ",
    "\x00\x01\x02\x7f\x80\x9f",
)


@pytest.fixture(scope="module")
def corpus(texts: list[str], tricky: tuple[str, ...]) -> list[str]:
    return [*texts, *tricky, *(text[:500] for text in HARD)]


def _byte_level(corpus: list[str], *, pattern: str, **changes: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if pattern == GPT2:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    tokenizer.decoder = decoders.ByteLevel()
    if "normalizer" in changes:
        tokenizer.normalizer = changes["normalizer"]
    trainer = make.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _gpt2(corpus: list[str]) -> Tokenizer:
    return _byte_level(corpus, pattern=GPT2)


def _llama3(corpus: list[str]) -> Tokenizer:
    """Whole words are taken from the vocabulary before merges; a BOS by template."""
    tokenizer = _byte_level(corpus, pattern=LLAMA3)
    settings = json.loads(tokenizer.to_str())
    settings["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return tokenizer


def _qwen2(corpus: list[str]) -> Tokenizer:
    """Marks that are not special, as <think>, are taken out of any text."""
    tokenizer = _byte_level(corpus, pattern=QWEN2, normalizer=normalizers.NFC())
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def _bert(corpus: list[str]) -> Tokenizer:
    """WordPiece of lower-case words: loses case and blanks, as its own library does."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = make.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _metaspace(corpus: list[str]) -> Tokenizer:
    """Llama 2 as transformers ships it: BPE over U+2581, bytes where a character is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = make.BpeTrainer(vocab_size=900, special_tokens=special[:3], show_progress=False)
    tokenizer.train_from_iterator([text[:300] for text in corpus], trainer)
    settings = json.loads(tokenizer.to_str())
    for piece in special[3:]:
        settings["model"]["vocab"].setdefault(piece, len(settings["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


FAMILIES: dict[str, Callable[[list[str]], Tokenizer]] = {
    "gpt2": _gpt2,
    "llama3": _llama3,
    "qwen2": _qwen2,
    "bert": _bert,
    "llama2": _metaspace,
}


NAMES: dict[str, dict[str, str]] = {
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"},
    "qwen2": {"eos_token": "<|im_start|>", "pad_token": "<|endoftext|>"},
    "bert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_huggingface_families_equal_transformers(
    family: str, corpus: list[str], tricky: tuple[str, ...], tmp_path: Path
) -> None:
    backend = FAMILIES[family](corpus)
    PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES[family]).save_pretrained(tmp_path)
    reference = AutoTokenizer.from_pretrained(str(tmp_path))
    unknown = backend.token_to_id("[UNK]" if family == "bert" else "<unk>")
    ours = load_tokenizer(tmp_path)
    assert ours.how.startswith("gigatoken") == (family in ("gpt2", "llama3", "qwen2"))
    for text in (*tricky, *HARD):
        expected = reference(text, add_special_tokens=False, split_special_tokens=True).input_ids
        (ids,) = ours.encode([text])
        assert ids.tolist() == expected, text[:80]
        # Nothing is suspected to be lost but what is: characters that are unknown.
        is_whole = ours.round_trip.loss(text, ids) is None
        assert is_whole == (unknown not in expected), text[:80]
        assert ours.round_trip.is_suspect(text, ids) == (not is_whole)
    # What its template puts before a text is what a build puts before a document.
    with_specials = reference("plain", add_special_tokens=True).input_ids
    alone = reference("plain", add_special_tokens=False).input_ids
    prefix = with_specials[: with_specials.index(alone[0])]
    assert list(ours.special_ids.document_prefix) == prefix
    assert bool(prefix) == (family in ("llama3", "bert"))
    for role in ("bos", "eos", "pad"):
        expected_id = getattr(reference, f"{role}_token_id")
        assert getattr(ours.special_ids, role) == expected_id
        assert (expected_id is not None) == (f"{role}_token" in NAMES[family])


@pytest.fixture(scope="module")
def train_sentencepiece(corpus: list[str]) -> Callable[..., None]:
    def train(folder: Path, **changes: Any) -> None:
        lines = [line for text in corpus for line in text.replace("\0", "").split("\n") if line]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(folder / "tokenizer"),
            minloglevel=2,
            hard_vocab_limit=False,
            **changes,
        )

    return train


SENTENCEPIECE = {
    # As Llama 2's: BPE, bytes for what is unknown, a blank before the text, digits apart.
    "llama2": {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "remove_extra_whitespaces": False,
    },
    # As T5's: unigram over normalised text, no bytes, symbols of its own.
    "t5": {
        "model_type": "unigram",
        "vocab_size": 500,
        "normalization_rule_name": "nmt_nfkc",
        "user_defined_symbols": ["<sep>", "ab"],
        "pad_id": 3,
    },
    "char": {"model_type": "char", "vocab_size": 500, "bos_id": -1},
}


@pytest.mark.parametrize("family", SENTENCEPIECE)
@pytest.mark.parametrize("adds_bos", [None, False, True])
def test_sentencepiece_families_equal_their_library(
    family: str,
    adds_bos: bool | None,
    train_sentencepiece: Callable[..., None],
    tricky: tuple[str, ...],
    tmp_path: Path,
) -> None:
    train_sentencepiece(tmp_path, **SENTENCEPIECE[family])
    if adds_bos is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": adds_bos}))
    reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = load_tokenizer(tmp_path)
    for text in (*tricky, *HARD):
        (ids,) = ours.encode([text])
        assert ids.tolist() == reference.encode(text), text[:80]
        assert not {reference.bos_id(), reference.eos_id()} & set(ids.tolist())
        is_whole = ours.round_trip.loss(text, ids) is None
        assert is_whole == (reference.unk_id() not in ids), text[:80]
    expected = {
        "bos": reference.bos_id(),
        "eos": reference.eos_id(),
        "pad": reference.pad_id(),
    }
    for role, token in expected.items():
        assert getattr(ours.special_ids, role) == (token if token >= 0 else None)
    bos = (reference.bos_id(),) if adds_bos and reference.bos_id() >= 0 else ()
    assert ours.special_ids.document_prefix == bos


@pytest.mark.parametrize("adds_bos", [None, False, True])
def test_a_sentencepiece_model_gets_the_bos_that_transformers_adds(
    adds_bos: bool | None, train_sentencepiece: Callable[..., None], tmp_path: Path
) -> None:
    train_sentencepiece(tmp_path, **SENTENCEPIECE["llama2"])
    settings: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer"}
    if adds_bos is not None:
        settings["add_bos_token"] = adds_bos
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = AutoTokenizer.from_pretrained(str(tmp_path))
    ours = load_tokenizer(tmp_path)
    text = "the entropy of tokens"
    whole = [*ours.special_ids.document_prefix, *ours.encode([text])[0].tolist()]
    assert whole == reference(text).input_ids
    special = ours.special_ids
    assert (special.bos, special.eos) == (reference.bos_token_id, reference.eos_token_id)


def test_bytes_come_back_through_fallback(
    train_sentencepiece: Callable[..., None], tricky: tuple[str, ...], tmp_path: Path
) -> None:
    train_sentencepiece(tmp_path, **SENTENCEPIECE["llama2"])
    ours = load_tokenizer(tmp_path)
    for text in (*tricky, *HARD):
        back = ours.decode(ours.encode([text])[0].tolist())
        assert back == text.replace("▁", " ") or unicodedata.normalize("NFC", back) == text
