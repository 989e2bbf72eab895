"""Which documents are held out: about the share asked for, and never two that are equal."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.encode import split_position
from data_prep.shards import open_corpus
from data_prep.tokenizing.tokenizer import load_tokenizer
from tests.data_prep.read_back import decoded


def test_equal_documents_are_never_on_both_sides(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    build_corpus: Callable[..., Path],
) -> None:
    """Nor are those that differ in white space, case or width only."""
    twice = [*texts, *texts, *(text.upper() + " \n" for text in texts)]
    folder = build_corpus(write_jsonl(tmp_path / "docs.jsonl", twice), val_frac=0.5)
    corpus = open_corpus(folder)
    assert corpus.num_documents("val") % 3 == 0
    tokenizer = load_tokenizer(corpus.tokenizer_dir)
    sides = [
        {
            "".join(tokenizer.decode(corpus.document(i, split).tolist()).casefold().split())
            for i in range(corpus.num_documents(split))
        }
        for split in ("train", "val")
    ]
    assert sides[0] and sides[1]
    assert not sides[0] & sides[1]


def test_the_split_does_not_depend_on_the_tokenizer(
    source: Path, build_corpus: Callable[..., Path], tmp_path: Path, unigram_folder: Path
) -> None:
    one = build_corpus(source, out=tmp_path / "one", val_frac=0.3)
    two = build_corpus(source, out=tmp_path / "two", val_frac=0.3, tokenizer=str(unigram_folder))
    assert decoded(one) == decoded(two)


def test_val_frac_is_about_that_share(
    tmp_path: Path, write_jsonl: Callable[..., Path], build_corpus: Callable[..., Path]
) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", (f"document {n}" for n in range(4000)))
    num_val = open_corpus(build_corpus(path, val_frac=0.1)).num_documents("val")
    assert 320 < num_val < 480  # four standard deviations around 400


@given(text=st.text(st.characters(max_codepoint=0x7F)))
@settings(max_examples=200, deadline=None)
def test_plain_text_takes_its_side_as_any_text_does(text: str) -> None:
    """The short way for ASCII is the long one: ª is none, and is deleted with its neighbour."""
    long_way = unicodedata.normalize("NFKC", text).casefold().encode()
    key = long_way.translate(None, b" \t\n\r\x0b\x0c")
    digest = hashlib.blake2b(key, digest_size=8).digest()
    assert split_position(text) == (int.from_bytes(digest, "big") >> 11) / 2**53
