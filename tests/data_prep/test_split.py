"""Which documents are held out: about the share asked for, and never two that are equal."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.shards import open_corpus
from data_prep.split import split_position
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


ASCII = st.text(st.characters(max_codepoint=0x7F), max_size=40)
# A mark combines with what is before it; ª is deleted with its neighbour, ﷺ becomes 18 letters.
OTHERS = st.text(
    st.sampled_from("\u0301\u0327\u0345éÅİßςªﷺ\uff21\u00a0가\u1161\ud800\U0001d400"), max_size=3
)


@given(pieces=st.lists(st.tuples(ASCII, OTHERS), max_size=6), times=st.sampled_from([1, 30]))
@settings(max_examples=400, deadline=None)
def test_the_short_ways_take_the_side_of_the_long_one(
    pieces: list[tuple[str, str]], times: int
) -> None:
    """ASCII, and a few other characters far apart, are folded without the text between them."""
    text = "".join(plain * times + others for plain, others in pieces)
    folded = unicodedata.normalize("NFKC", text).casefold().encode("utf-8", "surrogatepass")
    key = folded.translate(None, b" \t\n\r\x0b\x0c")
    digest = hashlib.blake2b(key, digest_size=8).digest()
    assert split_position(text) == (int.from_bytes(digest, "big") >> 11) / 2**53
