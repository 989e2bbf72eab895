"""Trains a tokenizer on the corpus itself: byte-level BPE, or sentencepiece unigram."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.tokenizing.settings import HF_NAME, SENTENCEPIECE_NAME, SETTINGS_NAME

Algorithm = Literal["bpe", "unigram"]
EOS = "<eos>"
# 256 bytes and EOS; unigram also has <unk>, and needs some letters.
MIN_VOCAB_SIZE: dict[Algorithm, int] = {"bpe": 257, "unigram": 300}
_MAX_LINE_CHARS = 1024
_MAX_UNIGRAM_LINES = 2_000_000
# BPE time grows with the square of a word's length: 300,000 letters take half a minute.
_WORD_CHARS = 1024
_LONG_WORD = re.compile(rf"\S{{{_WORD_CHARS}}}|\s{{{_WORD_CHARS}}}")
_TOO_FEW = re.compile(r"smaller than required_chars. \d+ vs (\d+)")


def train_tokenizer(
    texts: Iterable[str], *, algorithm: Algorithm, vocab_size: int, to: Path
) -> None:
    """Train on `texts` and write a folder that `load_tokenizer` reads.

    Texts that yield fewer entries than `vocab_size` are not an error: the vocabulary is smaller.
    """
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
    """All 256 bytes are in the vocabulary, so any text decodes exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    parts = (part for text in texts for part in parts_of_long_words(text))
    tokenizer.train_from_iterator(parts, trainer)
    tokenizer.save(str(to / HF_NAME))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,  # else " ." is decoded as "."
    }
    (to / SETTINGS_NAME).write_text(json.dumps(settings, indent=2) + "\n")


def _train_unigram(texts: Iterable[str], *, vocab_size: int, to: Path) -> None:
    """No normalisation, and byte fallback: any text decodes exactly, except U+2581."""
    failures: list[BaseException] = []
    lines = _lines(_keep_failure(texts, failures=failures))
    first = next(lines, None)
    if first is None:
        raise ValueError("unigram: the texts have no letters to train a tokenizer on")
    sentencepiece.set_random_generator_seed(0)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain([first], lines),
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
            hard_vocab_limit=False,  # a small corpus yields fewer pieces, which is not an error
            input_sentence_size=_MAX_UNIGRAM_LINES,
            shuffle_input_sentence=True,
            max_sentence_length=4 * _MAX_LINE_CHARS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise ValueError(_reason(str(error), vocab_size=vocab_size)) from None
    (to / SENTENCEPIECE_NAME).write_bytes(model.getvalue())


def _keep_failure(texts: Iterable[str], *, failures: list[BaseException]) -> Iterator[str]:
    """Keep errors of reading; sentencepiece would replace them by its own."""
    try:
        yield from texts
    except (Exception, KeyboardInterrupt) as error:
        failures.append(error)
        raise


def _reason(message: str, *, vocab_size: int) -> str:
    found = _TOO_FEW.search(message)
    if found is None:
        return f"unigram: sentencepiece failed: {message}"
    return (
        f"--vocab-size {vocab_size}: unigram needs at least {found[1]} for the characters of these "
        "texts; bpe would need 257 for any text"
    )


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """sentencepiece needs short lines, and silently drops long ones."""
    for text in texts:
        for line in text.replace("\0", "").split("\n"):
            for start in range(0, len(line), _MAX_LINE_CHARS):
                yield line[start : start + _MAX_LINE_CHARS]


def parts_of_long_words(text: str) -> list[str]:
    """The text cut inside words, or blanks, of more than 2,047 characters, so that none is left.

    Such a word contains a whole block, wherever blocks begin; a few characters rule out most
    blocks.
    """
    blocks = range(0, len(text) - _WORD_CHARS + 1, _WORD_CHARS)
    ends = [start for start in blocks if _LONG_WORD.match(text, start)]
    cuts = sorted({0, *ends, *(end + _WORD_CHARS for end in ends), len(text)})
    return [text[start:end] for start, end in pairwise(cuts)]
