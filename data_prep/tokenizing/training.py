"""A tokenizer made from the corpus itself: byte-level BPE, or sentencepiece unigram."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.tokenizing.files import SETTINGS_NAME
from data_prep.tokenizing.tokenizer import HF_NAME, SENTENCEPIECE_NAME

Algorithm = Literal["bpe", "unigram"]
EOS = "<eos>"
# 256 bytes and EOS; unigram also has <unk>, and wants some letters.
MIN_VOCAB_SIZE: dict[Algorithm, int] = {"bpe": 257, "unigram": 300}
_MAX_LINE_CHARS = 1024
_MAX_UNIGRAM_LINES = 2_000_000


def train_tokenizer(
    texts: Iterable[str], *, algorithm: Algorithm, vocab_size: int, to: Path
) -> None:
    """Train on `texts` and write a folder that `load_tokenizer` reads."""
    if vocab_size < MIN_VOCAB_SIZE[algorithm]:
        raise ValueError(
            f"--vocab-size {vocab_size}: {algorithm} needs at least {MIN_VOCAB_SIZE[algorithm]}"
        )
    to.mkdir()
    if algorithm == "bpe":
        _train_bpe(texts, vocab_size=vocab_size, to=to)
    else:
        _train_unigram(texts, vocab_size=vocab_size, to=to)


def _train_bpe(texts: Iterable[str], *, vocab_size: int, to: Path) -> None:
    """All 256 bytes are in the vocabulary, so any text comes back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(to / HF_NAME))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,  # else " ." is decoded as "."
    }
    (to / SETTINGS_NAME).write_text(json.dumps(settings, indent=2) + "\n")


def _train_unigram(texts: Iterable[str], *, vocab_size: int, to: Path) -> None:
    """No normalisation and byte fallback: what goes in comes out, U+2581 excepted."""
    sentencepiece.set_random_generator_seed(0)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\t"],
            unk_id=0,
            bos_id=-1,
            eos_id=1,
            eos_piece=EOS,
            hard_vocab_limit=False,  # a small corpus gives fewer pieces, which is no error
            input_sentence_size=_MAX_UNIGRAM_LINES,
            shuffle_input_sentence=True,
            max_sentence_length=4 * _MAX_LINE_CHARS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"--train-tokenizer unigram: {error}") from None
    (to / SENTENCEPIECE_NAME).write_bytes(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """sentencepiece wants short lines, and silently leaves long ones out."""
    for text in texts:
        for line in text.replace("\0", "").split("\n"):
            for start in range(0, len(line), _MAX_LINE_CHARS):
                yield line[start : start + _MAX_LINE_CHARS]
