"""The verb train-tokenizer: a folder that gives its texts back, the same for the same inputs."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from data_prep.tokenizing import train_on_inputs as module
from data_prep.tokenizing.tokenizer import load_tokenizer
from data_prep.tokenizing.training import parts_of_long_words, train_tokenizer

Cli = Callable[..., tuple[int, str, str]]
VOCAB = ("--vocab-size", 400)


@pytest.fixture
def source(tmp_path: Path, texts: list[str], tricky: tuple[str, ...], write_jsonl) -> Path:
    return write_jsonl(tmp_path / "docs.jsonl", [*texts, *tricky])


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_same_inputs_give_the_same_bytes_and_texts_come_back(
    algorithm: str, tmp_path: Path, source: Path, tricky: tuple[str, ...], run_cli: Cli, tree
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        code, out, error = run_cli(
            *("train-tokenizer", "--input", source, "--algorithm", algorithm, *VOCAB),
            *("--out", folder),
        )
        assert code == 0, error
    assert "129 with" in out
    assert "all of the inputs" in out
    assert tree(folders[0]) == tree(folders[1])
    tokenizer = load_tokenizer(folders[0])
    for text, ids in zip(tricky, tokenizer.encode(tricky), strict=True):
        expected = text.replace("▁", " ") if algorithm == "unigram" else text
        assert tokenizer.decode(ids.tolist()) == expected


def test_bpe_takes_the_fast_path_and_transformers_reads_it(
    tmp_path: Path, source: Path, tricky: tuple[str, ...], run_cli: Cli
) -> None:
    from transformers import AutoTokenizer

    out = run_cli("train-tokenizer", "--input", source, *VOCAB, "--out", tmp_path / "bpe")[1]
    assert "encodes    with gigatoken, proven equivalent" in out
    reference = AutoTokenizer.from_pretrained(str(tmp_path / "bpe"))
    for text, ids in zip(tricky, load_tokenizer(tmp_path / "bpe").encode(tricky), strict=True):
        assert ids.tolist() == reference(text, split_special_tokens=True).input_ids


def test_unigram_is_read_by_its_own_library(
    tmp_path: Path, source: Path, tricky: tuple[str, ...], run_cli: Cli
) -> None:
    flags = ("--algorithm", "unigram", "--out", tmp_path / "unigram")
    out = run_cli("train-tokenizer", "--input", source, *VOCAB, *flags)[1]
    assert "encodes    with sentencepiece" in out
    model = str(tmp_path / "unigram" / "tokenizer.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=model)
    ours = load_tokenizer(tmp_path / "unigram")
    assert [ids.tolist() for ids in ours.encode(tricky)] == reference.encode(list(tricky))
    assert (ours.special_ids.bos, ours.special_ids.eos) == (None, reference.eos_id())
    assert reference.id_to_piece(reference.eos_id()) == "<eos>"


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_fewer_entries_than_asked_for_are_said(
    algorithm: str, tmp_path: Path, run_cli: Cli, write_jsonl
) -> None:
    source = write_jsonl(tmp_path / "few.jsonl", ["hello world", "a cat"])
    flags = ("--algorithm", algorithm, "--vocab-size", 5000, "--out", tmp_path / "few")
    code, out, _ = run_cli("train-tokenizer", "--input", source, *flags)
    assert code == 0
    assert "note       the texts yielded fewer entries than --vocab-size 5000" in out
    size = load_tokenizer(tmp_path / "few").vocab_size
    assert size < 300 and f", {size} ids" in out
    flags = ("--train-tokenizer", algorithm, "--vocab-size", 5000, "--out", tmp_path / "corpus")
    code, out, _ = run_cli("build", "--input", source, *flags)
    assert code == 0
    assert "note       the texts yielded fewer entries than --vocab-size 5000" in out


@given(st.lists(st.tuples(st.sampled_from("ab \n,é汉"), st.integers(1, 5000)), max_size=8))
def test_no_long_word_is_left_and_none_is_lost(runs: list[tuple[str, int]]) -> None:
    text = "".join(character * times for character, times in runs)
    parts = parts_of_long_words(text)
    assert "".join(parts) == text
    assert all(len(word) < 2048 for part in parts for word in re.findall(r"\S+|\s+", part))
    short = "".join(character * min(times, 100) for character, times in runs)
    assert parts_of_long_words(short) == ([short] if short else [])


def test_a_line_without_blanks_does_not_hold_training_up(tmp_path: Path) -> None:
    line = "".join(chr(97 + n * n % 23 % 26) for n in range(2_000_000))  # minutes, uncut
    train_tokenizer([line], algorithm="bpe", vocab_size=300, to=tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").vocab_size == 300


def test_a_part_is_spread_over_the_inputs_and_does_not_hang_on_their_order(
    tmp_path: Path, texts: list[str], run_cli: Cli, write_jsonl, tree, monkeypatch
) -> None:
    seen: list[list[str]] = []
    train = module.train_tokenizer

    def spy(sample, **options):
        seen.append(list(sample))
        train(seen[-1], **options)

    monkeypatch.setattr(module, "train_tokenizer", spy)
    long = [text + " more" * 2000 for text in texts]
    for name, contents in (("a", long), ("b", long[::-1])):
        source = write_jsonl(tmp_path / f"{name}.jsonl", contents)
        code, out, _ = run_cli(
            *("train-tokenizer", "--input", source, *VOCAB, "--max-mb", 1),
            *("--out", tmp_path / name),
        )
        assert code == 0
        assert "texts decode exactly" in out
    assert sorted(seen[0]) == sorted(seen[1])
    places = [long.index(text) for text in seen[0]]
    assert 60 < len(places) < 115  # 1 MB of 1.25
    assert min(places) < 20 and max(places) > 100
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--vocab-size", 100), "--vocab-size 100: bpe needs at least 257"),
        (("--vocab-size", 100, "--algorithm", "unigram"), "unigram needs at least 300"),
        ((*VOCAB, "--max-mb", 0), "--max-mb 0: must be at least 1"),
        ((*VOCAB, "--ids-key", "ids"), "a tokenizer is trained on text, not ids"),
        ((*VOCAB, "--text-key", "body"), "docs.jsonl"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, source: Path, run_cli: Cli, flags: tuple, message: str
) -> None:
    code, _, error = run_cli("train-tokenizer", "--input", source, "--out", tmp_path / "x", *flags)
    assert code == 2
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.glob("*x*"))


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_bad_document_is_named_as_by_build(algorithm: str, tmp_path: Path, run_cli: Cli) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text('{"text": "good words"}\n' * 50 + "{bad\n")
    arguments = ("train-tokenizer", "--input", source, "--algorithm", algorithm, *VOCAB)
    code, _, error = run_cli(*arguments, "--out", tmp_path / "x")
    assert code == 2
    assert error.splitlines()[-1].startswith(f"error: {source}:51: broken JSON")
    code, out, _ = run_cli(*arguments, "--out", tmp_path / "x", "--on-error", "skip")
    assert code == 0 and "50 with" in out


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_stop_while_reading_is_a_stop(algorithm: str, tmp_path: Path) -> None:
    def texts():
        yield "some words"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(texts(), algorithm=algorithm, vocab_size=400, to=tmp_path / "t")


def test_unigram_says_how_many_entries_the_characters_need(
    tmp_path: Path, run_cli: Cli, write_jsonl
) -> None:
    characters = "".join(map(chr, range(0x4E00, 0x5200)))
    source = write_jsonl(tmp_path / "many.jsonl", [characters] * 3)
    arguments = ("train-tokenizer", "--input", source, "--algorithm", "unigram")
    code, _, error = run_cli(*arguments, *VOCAB, "--out", tmp_path / "many")
    found = re.search(r"error: --vocab-size 400: unigram needs at least (\d+) for", error)
    assert code == 2 and found is not None
    enough = ("--vocab-size", found[1], "--out", tmp_path / "many")
    assert run_cli(*arguments, *enough)[0] == 0


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_inputs_without_text_are_refused(
    algorithm: str, tmp_path: Path, run_cli: Cli, write_jsonl
) -> None:
    source = write_jsonl(tmp_path / "none.jsonl", ["", ""])
    flags = ("--algorithm", algorithm, *VOCAB, "--out", tmp_path / "x")
    code, _, error = run_cli("train-tokenizer", "--input", source, *flags)
    assert code == 2
    assert re.search(r"error: .*the (inputs|texts) have no ", error)
    assert not list(tmp_path.glob("*x*"))


def test_a_folder_with_another_tokenizer_is_kept(
    tmp_path: Path, source: Path, run_cli: Cli
) -> None:
    arguments = ("train-tokenizer", "--input", source, *VOCAB, "--out", tmp_path / "kept")
    assert run_cli(*arguments)[0] == 0
    before = (tmp_path / "kept" / "tokenizer.json").read_bytes()
    code, _, error = run_cli(*arguments)
    assert code == 2 and "add --overwrite" in error
    assert (tmp_path / "kept" / "tokenizer.json").read_bytes() == before
    assert run_cli(*arguments, "--overwrite")[0] == 0


def test_a_tokenizer_that_loses_text_is_refused(
    tmp_path: Path, source: Path, run_cli: Cli, monkeypatch
) -> None:
    load = module.load_tokenizer

    def forgetful(folder):
        tokenizer = load(folder)
        monkeypatch.setattr(tokenizer, "decode", lambda ids: "something else")
        return tokenizer

    monkeypatch.setattr(module, "load_tokenizer", forgetful)
    code, _, error = run_cli(
        "train-tokenizer", "--input", source, *VOCAB, "--out", tmp_path / "bad"
    )
    assert code == 2 and "does not reproduce the text" in error
    assert not (tmp_path / "bad").exists()


def test_the_bound_holds_for_inputs_whose_size_on_disk_says_little(
    tmp_path: Path, texts: list[str], run_cli: Cli, write_jsonl, tree
) -> None:
    for name, contents in (("a", texts), ("b", texts[::-1])):
        plain = write_jsonl(
            tmp_path / f"{name}.jsonl", [text + " more" * 3000 for text in contents]
        )
        source = tmp_path / f"{name}.jsonl.gz"
        source.write_bytes(gzip.compress(plain.read_bytes()))
        code, out, _ = run_cli(
            *("train-tokenizer", "--input", source, *VOCAB, "--max-mb", 1),
            *("--out", tmp_path / name),
        )
        assert code == 0
        assert re.search(r"with (1\.0|0\.9) MB, 5\d\.\d% of the", out), out
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
