"""The inspect verb: samples and documents as a person can read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.ledger import SPLITS, Split
from data_prep.packing.index import PackIndex
from data_prep.shards import Corpus, open_corpus
from data_prep.tokenizing.tokenizer import Tokenizer, load_tokenizer

_RULE_COLUMNS = 96
_BOLD, _DIM, _RESET = "\x1b[1;36m", "\x1b[2m", "\x1b[0m"
# A corpus may hold anything; what could move the cursor or set a title is shown, not sent.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def show(
    folder: Path,
    *,
    seq_len: int | None,
    split: Split,
    numbers: Sequence[int],
    in_colour: bool,
) -> Iterator[str]:
    """Lines to print: samples of a pack, or documents when `seq_len` is None."""
    corpus = open_corpus(folder)
    tokenizer = load_tokenizer(corpus.tokenizer_dir)
    index = None if seq_len is None else corpus.open_pack(seq_len)
    total = corpus.num_documents(split) if index is None else index.num_samples(split)
    for number in numbers:
        if not 0 <= number < total:
            what = "documents" if index is None else "samples"
            raise ValueError(f"--sample {number}: {split} has {total:,} {what}, from 0")
    counts = ", ".join(f"{s} {corpus.num_documents(s):,} documents" for s in SPLITS)
    yield f"{folder}: {counts}"
    for number in numbers:
        if index is None:
            lines = _document(corpus, number=number, split=split, tokenizer=tokenizer)
        else:
            lines = _sample(corpus, index=index, number=number, split=split, tokenizer=tokenizer)
        for is_rule, line in lines:
            yield _rule(line, in_colour=in_colour) if is_rule else line


def _document(
    corpus: Corpus, *, number: int, split: Split, tokenizer: Tokenizer
) -> Iterator[tuple[bool, str]]:
    ids = corpus.document(number, split)
    yield True, f"document {number:,} of {split}: {len(ids):,} tokens"
    yield False, printable(tokenizer.decode(ids.tolist()))


def _sample(
    corpus: Corpus, *, index: PackIndex, number: int, split: Split, tokenizer: Tokenizer
) -> Iterator[tuple[bool, str]]:
    sample = index.sample(number, split)
    pieces = index.pieces(number, split).tolist()
    num_padding = index.seq_len - sample.num_tokens
    yield (
        False,
        f"sample {number:,} of {split}: {sample.num_tokens:,} tokens in {len(pieces)} "
        f"piece{'' if len(pieces) == 1 else 's'}, {num_padding:,} padding",
    )
    for document, start, length in pieces:
        whole = len(corpus.document(document, split))
        part = "" if length == whole else f", tokens {start:,} to {start + length - 1:,}"
        yield True, f"document {document:,}: {length:,} of its {whole:,} tokens{part}"
        ids = corpus.document(document, split)[start : start + length]
        yield False, printable(tokenizer.decode(ids.tolist()))
    if num_padding:
        yield True, f"padding: {num_padding:,} tokens"


def printable(text: str) -> str:
    """The text with control characters spelt out; newline and tab stay."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def _rule(text: str, *, in_colour: bool) -> str:
    line = f"── {text} ".ljust(_RULE_COLUMNS, "─")
    colour = _DIM if text.startswith("padding") else _BOLD
    return f"{colour}{line}{_RESET}" if in_colour else line
