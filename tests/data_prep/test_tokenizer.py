"""Our tokenizers give the ids of the libraries that people know, on text that is hard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors

from data_prep.tokenizing import long_text
from data_prep.tokenizing.files import copy_tokenizer
from data_prep.tokenizing.long_text import is_safe_to_cut, pieces_of_long_text
from data_prep.tokenizing.reference import Reference
from data_prep.tokenizing.tokenizer import HuggingFaceTokenizer, load_tokenizer
from data_prep.tokenizing.training import train_tokenizer


def _ids(folder: Path, text: str) -> list[int]:
    return load_tokenizer(folder).encode([text])[0].tolist()


def test_huggingface_ids_equal_those_of_transformers(
    bpe_folder: Path, tricky: tuple[str, ...]
) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(bpe_folder))
    assert (reference.eos_token_id, reference.pad_token_id) == (0, 0)
    ours = load_tokenizer(bpe_folder).encode(tricky)
    for text, ids in zip(tricky, ours, strict=True):
        expected = reference(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids.tolist() == expected
        assert reference.decode(expected) == text


def test_sentencepiece_ids_equal_those_of_its_library(
    unigram_folder: Path, tricky: tuple[str, ...]
) -> None:
    model = str(unigram_folder / "tokenizer.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=model)
    ours = load_tokenizer(unigram_folder).encode(tricky)
    assert [ids.tolist() for ids in ours] == [reference.encode(text) for text in tricky]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(max_examples=200, deadline=None)
def test_bpe_gives_any_text_back(bpe_folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(bpe_folder)
    assert tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text


def test_any_ids_decode_as_the_library_decodes_them(bpe_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bpe_folder, fast=False)
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.round_trip.decodes_as_spelt
    reference = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    random = np.random.default_rng(0)
    for number in range(500):  # single bytes above all, which are no characters
        most = tokenizer.vocab_size if number % 2 else 300
        ids = random.integers(0, most, size=number % 40)
        assert tokenizer.decode(ids) == reference.decode(ids.tolist(), skip_special_tokens=False)
    # an added token is spelt as it is, while the decoder reads its letters as bytes
    reference.add_tokens(["caf\u00e9"])
    reference.save(str(tmp_path / "tokenizer.json"))
    other = load_tokenizer(tmp_path, fast=False)
    ids = [reference.token_to_id("caf\u00e9")]
    assert other.decode(ids) == reference.decode(ids)


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=200))
@settings(max_examples=200, deadline=None)
def test_unigram_gives_any_text_back_but_for_its_own_space_mark(
    unigram_folder: Path, text: str
) -> None:
    tokenizer = load_tokenizer(unigram_folder)
    assert tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text


@pytest.mark.parametrize("folder_name", ["bpe_folder", "unigram_folder"])
def test_text_never_encodes_to_a_control_token(
    folder_name: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(folder_name))
    control = {tokenizer.special_ids.eos, tokenizer.special_ids.pad} - {None}
    assert control
    for text in ("<eos>", "a<eos>b", " <eos> <eos>", "</s>", "<unk>"):
        assert not control & set(tokenizer.encode([text])[0].tolist())


def test_saved_truncation_and_padding_are_ignored(bpe_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bpe_folder, tmp_path / "cut")
    backend = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "cut" / "tokenizer.json"))
    assert _ids(tmp_path / "cut", "a text of several words") == _ids(
        bpe_folder, "a text of several words"
    )


@pytest.mark.parametrize(
    ("template", "settings_change", "expected"),
    [
        (True, {}, True),
        (True, {"add_bos_token": False}, True),
        (False, {"add_bos_token": True}, False),
        (False, {}, False),
    ],
)
def test_bos_is_put_in_front_when_transformers_would_put_it(
    bpe_folder: Path,
    tmp_path: Path,
    template: bool,
    settings_change: dict[str, bool],
    expected: bool,
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "bos"
    shutil.copytree(bpe_folder, folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<bos>"])
    bos = backend.token_to_id("<bos>")
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", bos)]
        )
    backend.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    content = {**json.loads(path.read_text()), "bos_token": "<bos>", **settings_change}
    path.write_text(json.dumps(content))
    special = load_tokenizer(folder).special_ids
    assert (special.bos, special.document_prefix) == (bos, (bos,) if expected else ())
    reference = AutoTokenizer.from_pretrained(str(folder))("text").input_ids
    assert (reference[0] == bos) is expected


def test_a_tokenizer_is_found_by_folder_file_or_model(
    bpe_folder: Path, unigram_folder: Path, tmp_path: Path
) -> None:
    copy_tokenizer(str(bpe_folder), to=tmp_path / "a")
    copy_tokenizer(str(bpe_folder / "tokenizer.json"), to=tmp_path / "b")
    copy_tokenizer(str(unigram_folder / "tokenizer.model"), to=tmp_path / "c")
    assert _ids(tmp_path / "a", "text") == _ids(tmp_path / "b", "text") == _ids(bpe_folder, "text")
    assert _ids(tmp_path / "c", "text") == _ids(unigram_folder, "text")


def _made(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return str(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("manifest.json", "tokenizer/tokenizer.json"),
            "is a corpus; its tokenizer is GIVEN/tokenizer",
        ),
        (
            ("manifest.json", "tokenizer/tokenizer.model"),
            "is a corpus; its tokenizer is GIVEN/tokenizer",
        ),
        (
            ("recipe.resolved.yaml", "export/tokenizer.json"),
            "is a run; its tokenizer is GIVEN/export",
        ),
        (
            ("recipe.resolved.yaml",),
            "is a run; python -m training export GIVEN writes its tokenizer to GIVEN/export",
        ),
        (
            ("vocab.json", "merges.txt"),
            "no tokenizer.json and no tokenizer.model in it; convert the tokenizer with "
            "transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
        ),
        (
            ("manifest.json",),
            "no tokenizer.json and no tokenizer.model in it; give the folder or file of a "
            "tokenizer, or a name on the hub",
        ),
    ],
)
def test_a_folder_that_is_no_tokenizer_is_named_as_given_before_anything_is_made(
    tmp_path: Path,
    source: Path,
    build_corpus: Callable[..., Path],
    names: tuple[str, ...],
    message: str,
) -> None:
    folder = _made(tmp_path / "folder", *names)
    with pytest.raises(ValueError) as refused:
        build_corpus(source, tokenizer=folder, out=tmp_path / "new" / "corpus")
    assert str(refused.value) == f"--tokenizer {folder}: {message.replace('GIVEN', folder)}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs.jsonl", "folder"]


@pytest.mark.parametrize(
    ("given", "damaged", "where"),
    [
        ("t", "t/tokenizer.json", "t/tokenizer.json: not a tokenizer"),
        ("t/mine.json", "t/mine.json", "t/mine.json: not a tokenizer"),
        ("t", "t/tokenizer_config.json", "t/tokenizer_config.json: not JSON"),
        ("t/mine.json", "t/tokenizer_config.json", "t/tokenizer_config.json: not JSON"),
    ],
)
def test_a_damaged_tokenizer_is_named_as_given_and_leaves_nothing(
    bpe_folder: Path,
    tmp_path: Path,
    source: Path,
    build_corpus: Callable[..., Path],
    given: str,
    damaged: str,
    where: str,
) -> None:
    shutil.copytree(bpe_folder, tmp_path / "t")
    shutil.copy(bpe_folder / "tokenizer.json", tmp_path / "t" / "mine.json")
    (tmp_path / damaged).write_text("{")
    with pytest.raises(ValueError) as refused:
        build_corpus(source, tokenizer=str(tmp_path / given))
    assert str(refused.value).startswith(f"--tokenizer {tmp_path / where}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs.jsonl", "t"]


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="convert the tokenizer with transformers"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", "null"])
def test_settings_that_are_damaged_are_refused_by_name(
    bpe_folder: Path, tmp_path: Path, content: str
) -> None:
    """Without them documents would get no EOS."""
    folder = shutil.copytree(bpe_folder, tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}: "):
        load_tokenizer(folder)


def test_a_vocabulary_too_small_for_all_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--vocab-size 100: bpe needs at least 257"):
        train_tokenizer(["text"], algorithm="bpe", vocab_size=100, to=tmp_path / "t")


PATTERNS = {
    "gpt2": long_text.GPT2_PATTERN,
    "llama3": long_text.LLAMA3_PATTERN,
    "qwen2": long_text.QWEN2_PATTERN,
}
WHITE = [" ", "  ", "\n", "\n", "\n   ", "\n\n", "\t", "\r\n", "\r", "\u2028", "\xa0", "\x85"]
BLACK = ["a", "Word", "1", "12345", "!", "...", "'s", "'S", "e\u0301", "\u0301", "汉", "<eos>"]
OTHER = ["<tool>", "_", "\x1c", "\u200b"]
PIECES = st.sampled_from([*WHITE, *BLACK, *OTHER])


@pytest.mark.parametrize("name", PATTERNS)
@given(parts=st.lists(PIECES, max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_text_cut_in_parts_encodes_as_the_whole(
    bpe_folder: Path, name: str, parts: list[str]
) -> None:
    backend = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    backend.normalizer = normalizers.NFC()
    backend.encode_special_tokens = True
    backend.add_tokens(["<tool>"])
    if name != "gpt2":
        split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    assert is_safe_to_cut(json.loads(backend.to_str()))
    text = "".join(parts)
    cut = pieces_of_long_text(text, piece_chars=3)
    assert "".join(cut) == text
    ids = [token for part in cut for token in backend.encode(part).ids]
    assert ids == backend.encode(text).ids


def test_long_texts_are_cut_at_the_ends_of_lines_only() -> None:
    text = "ab\ncd\n\nef\ngh"
    assert pieces_of_long_text(text, piece_chars=1) == ["ab\n", "cd\n\nef\n", "gh"]
    assert pieces_of_long_text("if a:\n    b\n", piece_chars=1) == ["if a:\n   ", " b\n"]
    assert pieces_of_long_text("x" * 50, piece_chars=10) == ["x" * 50]


def test_tokenizers_of_unknown_form_are_never_cut(bpe_folder: Path) -> None:
    sound = json.loads((bpe_folder / "tokenizer.json").read_text())
    assert is_safe_to_cut(sound)
    lstrip = {**sound["added_tokens"][0], "special": False, "lstrip": True}
    word = {**lstrip, "lstrip": False, "content": "word"}
    spaces = {**word, "content": "    "}
    for change in (
        {"model": {"type": "Unigram"}},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"added_tokens": [lstrip]},
        {"added_tokens": [word]},
        {"added_tokens": [spaces]},
    ):
        assert not is_safe_to_cut({**sound, **change})


def test_a_document_of_many_megabytes_encodes_as_if_whole(
    bpe_folder: Path, texts: list[str]
) -> None:
    tokenizer = HuggingFaceTokenizer(bpe_folder)
    text = "\n".join(texts) * 12
    assert len(text) > 2 * long_text.LONG_TEXT_CHARS
    assert len(pieces_of_long_text(text)) > 2
    backend = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    whole = Reference(backend, cuts_long_text=False).encode([text])[0]
    assert tokenizer.encode([text])[0].tolist() == whole.tolist()


def test_ctrl_c_ends_the_encoding_of_many_texts_within_one_of_them() -> None:
    """Not after a long one more, and not while they are still encoded, which Python waits for."""
    seen: list[str] = []

    class Interrupted:
        def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> list[Any]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            seen.extend(texts)
            return [SimpleNamespace(ids=[0])]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            text = "x" * long_text.LONG_TEXT_CHARS
            Reference(cast(Tokenizer, Interrupted()), cuts_long_text=True).encode([text] * 3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(seen) == 1


def test_settings_choose_among_the_tokens_of_a_sentencepiece_model(
    unigram_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(unigram_folder, tmp_path / "t"))
    settings = {"eos_token": {"content": "\n"}, "added_tokens_decoder": {"1": {"content": "<eos>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.special_ids.eos == tokenizer.encode(["\n"])[0][-1]
