"""Ids spell the text that was encoded; what they lose is refused, or counted, and never silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    Tokenizer,
    models,
    pre_tokenizers,
)

from data_prep.reading.fields import Fields
from data_prep.shards import open_corpus
from tests.data_prep.small_tokenizers import LOST, PLAIN, character_bpe, saved

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def build(
    tmp_path: Path, write_jsonl: Callable[..., Path], run_cli: Cli
) -> Callable[..., tuple[int, str, str]]:
    def run(texts: list[str], folder: Path, *flags: object) -> tuple[int, str, str]:
        source = write_jsonl(tmp_path / "docs.jsonl", texts)
        where = ("--input", source, "--tokenizer", folder, "--out", tmp_path / "corpus")
        workers = () if "--workers" in flags else ("--workers", 1)
        return run_cli("build", *where, *workers, "--val-frac", 0, *flags)

    return run


def test_characters_without_a_token_end_the_build_naming_them(tmp_path: Path, build: Cli) -> None:
    folder = saved(character_bpe(), tmp_path / "t", eos_token="<eos>")
    code, _, error = build([PLAIN, PLAIN, LOST], folder)
    last = error.splitlines()[-1]
    assert code == 2
    assert (
        "docs.jsonl:3: the tokenizer loses 5 characters: 'Ü', 'ï', '☃', '水', '車', first" in last
    )
    assert "byte fallback" in last and "--on-loss count" in last
    assert not (tmp_path / "corpus").exists()


def test_lost_characters_are_counted_where_that_is_wanted(tmp_path: Path, build: Cli) -> None:
    folder = saved(character_bpe(), tmp_path / "t", eos_token="<eos>")
    code, out, error = build([PLAIN, LOST, "水車", PLAIN], folder, "--on-loss", "count")
    assert code == 0, error
    ledger = open_corpus(tmp_path / "corpus").manifest.ledger
    assert (ledger.num_documents_checked, ledger.num_documents_with_loss) == (4, 2)
    assert ledger.num_chars_lost == 5 + 2
    assert "docs.jsonl:3: the tokenizer loses 2 characters" in ledger.first_losses[1]
    assert "lost       7 characters that have no token" in out


def test_a_document_that_leaves_no_id_at_all_is_not_merely_empty(
    tmp_path: Path, build: Cli
) -> None:
    tokenizer = character_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = saved(tokenizer, tmp_path / "t")
    code, _, error = build([PLAIN, "水車"], folder)
    assert code == 2
    assert "docs.jsonl:2: the tokenizer loses 2 characters" in error


@pytest.mark.parametrize("place", [0, 900, 2999])
@pytest.mark.parametrize("options", [{}, {"unk_token": "<unk>", "fuse_unk": True}])
def test_a_lost_character_is_found_in_any_document(
    tmp_path: Path, build: Cli, place: int, options: dict[str, Any]
) -> None:
    """Also outside the sample."""
    folder = saved(character_bpe(**options), tmp_path / "t")
    texts = [f"{PLAIN} " + "and words " * 9 for _ in range(3000)]
    texts[place] = "unicode ☃☃ and"
    code, _, error = build(texts, folder)
    assert code == 2
    assert f"docs.jsonl:{place + 1}: the tokenizer loses 2 characters: '☃', first at 8" in error
    code = build(texts, folder, "--on-loss", "count")[0]
    ledger = open_corpus(tmp_path / "corpus").manifest.ledger
    assert (code, ledger.num_documents_with_loss, ledger.num_chars_lost) == (0, 1, 2)
    assert ledger.num_documents_checked < 1500


def test_any_number_of_workers_checks_and_counts_the_same(
    tmp_path: Path, build: Cli, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    folder = saved(character_bpe(unk_token="<unk>"), tmp_path / "t")
    texts = [f"{PLAIN} {n % 7} " * 30 for n in range(2000)]
    results = []
    for count in (1, 3):
        flags = ("--on-loss", "count", "--workers", count, "--overwrite")
        assert build(texts, folder, *flags)[0] == 0
        results.append(tree(tmp_path / "corpus"))
    assert results[0] == results[1]
    ledger = open_corpus(tmp_path / "corpus").manifest.ledger
    assert ledger.num_chars_lost == 2000 * 30  # no digit has a token
    assert len(ledger.first_losses) == 10


def test_all_documents_are_checked_if_asked(
    tmp_path: Path, build: Cli, bpe_folder: Path, texts: list[str]
) -> None:
    many = [f"{n} {text}" for n in range(20) for text in texts]
    counts = {}
    for check in ("sample", "all"):
        code, out, error = build(many, bpe_folder, "--check", check, "--overwrite")
        assert code == 0, error
        counts[check] = open_corpus(tmp_path / "corpus").manifest.ledger.num_documents_checked
        assert f"checked    {counts[check]:,} documents against what their ids spell: 0 lose" in out
    assert 20 < counts["sample"] < 400
    assert counts["all"] == len(many) == 2400


def test_ids_given_as_such_are_not_checked(tmp_path: Path, run_cli: Cli) -> None:
    folder = saved(character_bpe(unk_token="<unk>"), tmp_path / "t")
    unknown = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<unk>")
    (tmp_path / "ids.jsonl").write_text(json.dumps({"ids": [unknown, unknown]}) + "\n")
    code, out, error = run_cli(
        *("build", "--input", tmp_path / "ids.jsonl", "--ids-key", "ids", "--val-frac", 0),
        *("--tokenizer", folder, "--out", tmp_path / "corpus", "--workers", 1, "--check", "all"),
    )
    assert code == 0, error
    assert "checked" not in out


def test_a_build_that_counted_losses_does_not_end_as_if_there_were_none(
    tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.write_corpus.COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("data_prep.encode.TASK_BYTES", 1)
    monkeypatch.setattr("data_prep.reading.lines.PART_BYTES", 200)
    folder = saved(character_bpe(), tmp_path / "t")
    texts = [LOST, *[PLAIN] * 100]
    path = tmp_path / "docs.jsonl"
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    path.write_text("".join(lines) + "{broken\n")
    where = ("--input", path, "--tokenizer", folder, "--out", tmp_path / "corpus")
    command = ("build", *where, "--workers", 1, "--val-frac", 0)
    assert run_cli(*command, "--on-loss", "count")[0] == 2
    code, _, error = run_cli(*command, "--on-error", "skip")
    assert code == 2
    assert "has counted 5 lost characters; resume it with --on-loss count" in error
    code, _, error = run_cli(*command, "--on-error", "skip", "--on-loss", "count")
    assert code == 0 and "resuming after" in error
    assert open_corpus(tmp_path / "corpus").manifest.ledger.num_chars_lost == 5


def test_text_that_a_tokenizer_cannot_encode_is_one_sentence(tmp_path: Path, build: Cli) -> None:
    tokenizer = Tokenizer(models.WordLevel({"words": 0}, unk_token="<missing>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = saved(tokenizer, tmp_path / "t")
    code, _, error = build(["words other"], folder)
    assert code == 2
    assert "its unknown token must be in its vocabulary" in error.splitlines()[-1]


TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("answer", ["words", "w☃rds"])
def test_conversations_are_checked_as_texts_are(
    tmp_path: Path, build_corpus: Callable[..., Path], answer: str
) -> None:
    tokenizer = character_bpe(unk_token="<unk>")
    tokenizer.add_special_tokens(["<|user|>", "<|assistant|>"])
    folder = saved(tokenizer, tmp_path / "t", eos_token="<eos>", unk_token="<unk>")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    messages = [{"role": "user", "content": PLAIN}, {"role": "assistant", "content": answer}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    options = {"tokenizer": str(folder), "fields": Fields(messages="messages")}
    if answer == "words":
        ledger = open_corpus(build_corpus(path, **options)).manifest.ledger
        assert (ledger.num_documents_checked, ledger.num_documents_with_loss) == (1, 0)
    else:
        with pytest.raises(
            ValueError, match=r"chats.jsonl:1: the tokenizer loses 1 character: '☃'"
        ):
            build_corpus(path, **options)
