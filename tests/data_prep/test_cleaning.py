"""Lists of removals: what they hold, what they name, and that nothing else is touched."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cleaning import exact
from data_prep.cleaning.near import hash_ngrams, rows_of_band
from data_prep.cleaning.removals import load_removals, removals_fingerprint, removed_documents
from data_prep.cleaning.words import normalised, words_of
from data_prep.packing.pack import pack
from data_prep.shards import Corpus, open_corpus

Cli = Callable[..., tuple[int, str, str]]
WORDS = [f"w{number}" for number in range(600)]


def sentence(rng: random.Random, length: int) -> list[str]:
    return rng.choices(WORDS, k=length)


def report(corpus: Corpus, name: str) -> list[dict[str, Any]]:
    lines = (corpus.folder / "removals" / name / "report.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def removed(corpus: Corpus) -> dict[str, set[int]]:
    return {split: set(removed_documents(corpus, split).tolist()) for split in ("train", "val")}


@given(documents=st.lists(st.text("ab", min_size=1, max_size=3), max_size=40))
@settings(max_examples=200, deadline=None)
def test_exact_duplicates_are_all_but_the_first_of_each(documents):
    ids = [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) for text in documents]
    corpus = SimpleNamespace(num_documents=lambda split: len(ids) if split == "val" else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "iter_documents", lambda corpus, *, start, end: iter(ids[start:end]))
        found, kept = exact.find_exact_duplicates(corpus)
    first: dict[str, int] = {}
    expected = []
    for number, text in enumerate(documents):
        if first.setdefault(text, number) != number:
            expected.append((number, first[text]))
    assert list(zip(found.tolist(), kept.tolist(), strict=True)) == expected


@pytest.fixture
def repeated(
    tmp_path: Path, texts: list[str], write_jsonl: Callable[..., Path], build_corpus
) -> Corpus:
    """Three domains over two shards each, with every third text of one in another."""
    sources = {"a": texts[:60], "b": [*texts[60:], *texts[:60:3]], "c": texts[90:]}
    inputs = [
        f"{name}={write_jsonl(tmp_path / f'{name}.jsonl', part)}" for name, part in sources.items()
    ]
    return open_corpus(build_corpus(*inputs, val_frac=0.3, shard_mib=0.01))


def test_exact_dedup_keeps_one_of_each_text_and_names_it(repeated: Corpus, run_cli: Cli) -> None:
    before = {path: path.read_bytes() for path in repeated.folder.glob("shard-*")}
    index = pack(repeated.folder, seq_len=128)
    code, out, error = run_cli("dedup", repeated.folder)
    assert code == 0, error
    gone = removed(repeated)
    for split in ("train", "val"):
        texts = [bytes(repeated.document(i, split)) for i in range(repeated.num_documents(split))]
        kept = [text for i, text in enumerate(texts) if i not in gone[split]]
        assert len(kept) == len(set(kept)) == len(set(texts))
    assert len(gone["train"]) + len(gone["val"]) == 50
    for line in report(repeated, "exact"):
        stays, split = line["kept"], line["split"]
        assert stays["split"] == split and stays["document"] not in gone[split]
        ids = repeated.document(line["document"], split)
        assert np.array_equal(ids, repeated.document(stays["document"], stays["split"]))
        assert line["origin"] == str(repeated.origin(line["document"], split))
        assert line["num_tokens"] == len(ids)
    assert before == {path: path.read_bytes() for path in repeated.folder.glob("shard-*")}
    assert f"next           python -m data_prep pack {repeated.folder} --seq-len 128 --over" in out
    notes = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("note")]
    assert notes == [f"nothing of c stays in {split}" for split in ("train", "val")]
    again = pack(repeated.folder, seq_len=128, overwrite=True)
    lost = sum(line["num_tokens"] for line in report(repeated, "exact") if line["split"] == "train")
    assert again.num_tokens() == index.num_tokens() - lost


def test_a_copy_of_a_held_out_document_goes_from_train(
    tmp_path: Path, write_jsonl: Callable[..., Path], build_corpus, run_cli: Cli
) -> None:
    """Sides are taken by text, so a near copy may well lie on the other side."""
    rng = random.Random(1)
    originals = [sentence(rng, 200) for _ in range(60)]
    copies = [[*words[:-1], f"end{i}"] for i, words in enumerate(originals)]
    source = write_jsonl(tmp_path / "x.jsonl", map(" ".join, [*originals, *copies]))
    corpus = open_corpus(build_corpus(source, val_frac=0.3))
    assert run_cli("dedup", corpus.folder, "--near", "--workers", 1)[0] == 0
    lines = report(corpus, "near")
    assert len(lines) == 60
    crossing = [line for line in lines if line["kept"]["split"] != line["split"]]
    assert len(crossing) > 5
    assert {(line["split"], line["kept"]["split"]) for line in crossing} == {("train", "val")}
    assert all(line["similarity"] >= 0.8 for line in lines)


def test_near_dedup_finds_what_is_alike_and_nothing_else(
    tmp_path: Path, write_jsonl: Callable[..., Path], build_corpus, run_cli: Cli, tree
) -> None:
    rng = random.Random(0)
    documents, alike = [], set()
    for _ in range(80):
        words = sentence(rng, rng.randint(60, 300))
        documents.append(words)
        for share in (0.01, 0.6):  # of the words changed: alike, and not
            copy = [w if rng.random() > share else "changed" for w in words]
            if share == 0.01:
                alike.add(len(documents))
            documents.append(copy)
    source = write_jsonl(tmp_path / "x.jsonl", map(" ".join, documents))
    corpus = open_corpus(build_corpus(source))
    trees = []
    for workers in (1, 2):
        flags = ("--near", "--threshold", 0.6, "--workers", workers, "--overwrite")
        code, _, error = run_cli("dedup", corpus.folder, *flags)
        assert code == 0, error
        trees.append(tree(corpus.folder / "removals"))
    assert trees[0] == trees[1]
    assert removed(corpus)["train"] == alike


def test_a_band_is_chosen_so_that_hardly_a_pair_is_missed():
    for threshold in (0.3, 0.5, 0.8, 0.95):
        rows = rows_of_band(threshold, num_perm=128)
        assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.995
        assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.995


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=30), n=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_equal_ngrams_have_equal_hashes_and_others_not(ids, n):
    hashes = hash_ngrams(np.array(ids, dtype=np.uint16), n=n)
    n = min(n, len(ids))
    ngrams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    assert len(hashes) == len(ngrams)
    assert len(set(hashes.tolist())) == len(set(ngrams))
    assert len(set(zip(ngrams, hashes.tolist(), strict=True))) == len(set(ngrams))


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    rng = random.Random(7)
    rows = [{"question": " ".join(sentence(rng, 30)), "answer": "yes"} for _ in range(5)]
    rows[4]["question"] = "A short one: w1, w2, w3, w4, w5, w6, w7!"  # 10 words
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_benchmark_text_is_found_whatever_its_case_and_commas(
    tmp_path: Path, benchmark: Path, write_jsonl, build_corpus, run_cli: Cli
) -> None:
    rng = random.Random(3)
    questions = [json.loads(line)["question"] for line in benchmark.read_text().splitlines()]
    hidden = {
        11: ", ".join(questions[2].upper().split()[4:20]),  # 16 of its 30 words
        27: questions[4].replace(":", " —").lower(),  # a short text, whole
    }
    plain = {
        5: " ".join(questions[1].split()[:12]),  # one word less than an n-gram
        40: "short one w1 w2 w3 w4 w5 w6 w7",  # a short text without its first word
    }
    documents = []
    for number in range(50):
        inside = (hidden | plain).get(number, "")
        documents.append(" ".join([*sentence(rng, 40), inside, *sentence(rng, 40)]))
    corpus = open_corpus(build_corpus(write_jsonl(tmp_path / "x.jsonl", documents)))
    flags = ("decontaminate", corpus.folder, "--against", benchmark, "--text-key", "question")
    for workers in (1, 2):
        code, out, error = run_cli(*flags, "--workers", workers, "--overwrite")
        assert code == 0, error
        assert removed(corpus)["train"] == set(hidden)
    first, second = report(corpus, "decontaminate")
    assert first["matched"].startswith(f"{benchmark}")
    assert first["num_matches"] == 4  # n-grams of 13 in 16 words
    assert first["words"] == " ".join(words_of(normalised(questions[2]))[4:17])
    assert second["num_matches"] == 1
    assert second["matched"] != first["matched"]
    # The answers are too short to tell anything, and are said to be.
    code, out, _ = run_cli(*flags, "--text-key", "answer", "--overwrite")
    assert "texts 5, texts_too_short 5" in out
    code, out, _ = run_cli(*flags, "--min-matches", 2, "--overwrite")
    assert removed(corpus)["train"] == {11}


def test_several_lists_are_one_union_and_have_one_fingerprint(
    repeated: Corpus, run_cli: Cli
) -> None:
    assert removals_fingerprint(repeated) is None
    run_cli("dedup", repeated.folder)
    one, first = removals_fingerprint(repeated), removed(repeated)
    run_cli("dedup", repeated.folder, "--near", "--name", "alike", "--workers", 1)
    assert [part.name for part in load_removals(repeated.folder)] == ["alike", "exact"]
    assert removed(repeated)["train"] >= first["train"]
    assert removals_fingerprint(repeated) not in (one, None)
    run_cli("dedup", repeated.folder, "--overwrite")
    (repeated.folder / "removals" / "alike" / "removals.json").unlink()  # as if it never ended
    assert removals_fingerprint(repeated) == one


def test_a_dry_run_writes_nothing_and_a_list_is_not_replaced_unasked(
    repeated: Corpus, run_cli: Cli, tree
) -> None:
    before = tree(repeated.folder)
    code, out, _ = run_cli("dedup", repeated.folder, "--dry-run")
    assert code == 0 and "nothing was written" in out and "a: 0 of" in out
    assert tree(repeated.folder) == before
    assert run_cli("dedup", repeated.folder)[0] == 0
    code, _, error = run_cli("dedup", repeated.folder)
    assert code == 2 and "already exists" in error and "--overwrite" in error


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "expected .* bytes, found"),
        (
            lambda path: path.write_bytes(b"\1" + path.read_bytes()[1:]),
            "checksum differs from the recor",
        ),
    ],
)
def test_a_damaged_list_is_refused(repeated: Corpus, run_cli: Cli, damage, message) -> None:
    run_cli("dedup", repeated.folder)
    damage(repeated.folder / "removals" / "exact" / "docs.train")
    with pytest.raises(ValueError, match=message):
        removed_documents(repeated, "train")


def test_a_list_of_another_corpus_is_refused(
    repeated: Corpus, tmp_path: Path, texts: list[str], write_jsonl, build_corpus, run_cli: Cli
) -> None:
    run_cli("dedup", repeated.folder)
    source = write_jsonl(tmp_path / "other.jsonl", texts[:20])
    other = open_corpus(build_corpus(source, out=tmp_path / "other"))
    (other.folder / "removals").mkdir()
    (repeated.folder / "removals" / "exact").rename(other.folder / "removals" / "exact")
    code, _, error = run_cli("pack", other.folder, "--seq-len", 64)
    assert code == 2
    assert "exact: made for another corpus: expected fingerprint" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dedup", "--near", "--threshold", 0), "--threshold 0.0: must be above 0 and at most 1"),
        (("dedup", "--near", "--num-perm", 8), "--num-perm 8: must be from 16 to 1024"),
        (("dedup", "--near", "--ngram", 0), "--ngram 0: must be at least 1"),
        (("dedup", "--near", "--workers", 0), "--workers 0: must be at least 1"),
        (("dedup", "--name", "../x"), "--name '../x': use at most 64 letters, digits"),
        (("decontaminate", "--against", "nothing-here"), "error: --against nothing-here: no"),
        (("decontaminate", "--against", "BENCH"), "answer, question; name the field with --t"),
        (
            ("decontaminate", "--against", "BENCH", "--text-key", "answer"),
            "no text of 8 or more words under answer",
        ),
        (("decontaminate", "--against", "BENCH", "--ngram", 3), "--ngram 3: must be at least 8"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    repeated: Corpus, benchmark: Path, run_cli: Cli, arguments: tuple, message: str
) -> None:
    verb, *flags = (benchmark if word == "BENCH" else word for word in arguments)
    code, _, error = run_cli(verb, repeated.folder, *flags)
    assert code == 2
    assert message in error.splitlines()[-1]
    assert not list((repeated.folder).glob("removals/*"))
