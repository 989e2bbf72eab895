"""What a page shows of tokens that are not whole characters."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import open_corpus
from data_prep.tokenizing.tokenizer import load_tokenizer
from data_prep.viewing.token_texts import part_bytes, texts_of
from tests.browser import built_page

Cli = Callable[..., tuple[int, str, str]]


def test_a_mark_of_the_document_does_not_swallow_what_follows(bpe_folder: Path) -> None:
    """U+FFFD is common in crawled text; it also is what the start of a character decodes to."""
    tokenizer = load_tokenizer(bpe_folder)
    text = "a \ufffd b c d \ufffd\ufffd tokens \u65e5\u672c" + "\ufffd" * 20 + " of"
    ids = tokenizer.encode([text])[0]
    texts = texts_of(ids, tokenizer)
    assert "".join(texts) == text
    for word in (" b", " c", " d", " tokens", " of"):
        (own,) = tokenizer.encode([word])
        starts = [i for i in range(len(ids)) if np.array_equal(ids[i : i + len(own)], own)]
        assert any("".join(texts[i : i + len(own)]) == word for i in starts), word
    # No token has more than its own: the longest is a word, not a run of what was joined.
    assert max(map(len, texts)) <= max(map(len, (tokenizer.decode([int(i)]) for i in ids)))


def test_ids_that_end_within_a_character_say_all_that_they_decode_to(bpe_folder: Path) -> None:
    tokenizer = load_tokenizer(bpe_folder)
    ids = tokenizer.encode(["high \u65e5"])[0]
    for end in range(1, len(ids) + 1):
        texts = texts_of(ids[:end], tokenizer)
        assert len(texts) == end
        assert "".join(texts) == tokenizer.decode(ids[:end].tolist())


def test_bytes_of_parts_put_together_are_the_characters(bpe_folder: Path) -> None:
    tokenizer, parts = load_tokenizer(bpe_folder), part_bytes(bpe_folder)
    for text in ("\u0939", "\U0001d11e", "\u0436\u0439", "\ufffd"):
        ids = tokenizer.encode([text])[0].tolist()
        assert b"".join(parts.get(i) or tokenizer.decode([i]).encode() for i in ids) == (
            text.encode()
        )
    whole = tokenizer.encode(["the tokens"])[0].tolist()
    assert not set(whole) & set(parts)


def test_bytes_of_byte_fallback_are_found(tmp_path: Path) -> None:
    import sentencepiece

    corpus = tmp_path / "text.txt"
    corpus.write_text("the entropy of tokens\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer, parts = load_tokenizer(tmp_path), part_bytes(tmp_path)
    ids = tokenizer.encode(["\u65e5"])[0].tolist()
    assert b"".join(parts[i] for i in ids if i in parts) == "\u65e5".encode()
    assert sorted(b for raw in parts.values() for b in raw) == list(range(0x80, 0x100))


@pytest.mark.parametrize("in_browser", [False, True])
def test_bytes_without_a_character_are_shown_as_hex(
    tmp_path: Path,
    write_jsonl: Callable[..., Path],
    build_corpus: Callable[..., Path],
    run_cli: Cli,
    in_browser: bool,
) -> None:
    text = "high \u0416 low"
    folder = build_corpus(write_jsonl(tmp_path / "d.jsonl", [text]))
    corpus = open_corpus(folder)
    ids, parts = corpus.document(0).tolist(), part_bytes(corpus.tokenizer_dir)
    out = tmp_path / "page.html"
    code, _, error = run_cli("inspect", folder, "--html", out)
    assert code == 0, error
    page = built_page(out, folder=tmp_path) if in_browser else out.read_text(encoding="utf-8")
    found = re.findall(r'<span class="t[^"]*" title="([^"]*)"><bdi>(.*?)</bdi>', page, re.DOTALL)
    assert len(found) == len(ids)
    hexes = {}
    for token, (title, shown) in zip(ids, found, strict=True):
        assert f"id {token}," in title
        if token in parts:
            assert f"bytes {parts[token].hex(' ').upper()}" in title
            hexes[parts[token]] = unescape(re.sub(r"<[^>]*>", "", shown))
    # The first byte of the letter stands alone; where the last one is, the letter is whole.
    assert hexes == {b"\xd0": "D0", b"\x96": "\u0416"}
