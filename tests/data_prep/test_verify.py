"""verify and the reader notice every kind of damage, and say where, what and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.manifest import Manifest
from data_prep.shards import open_corpus
from data_prep.verify import verify


def _problems(folder: Path, *, deep: bool = False) -> dict[str, str]:
    return {check.name: check.problem for check in verify(folder, deep=deep) if check.problem}


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    del content["sha256_of_the_rest"]
    change(content)
    path.write_text(json.dumps(content))


def _patch(path: Path, *, dtype: str, at: int, value: int) -> None:
    array = np.fromfile(path, dtype=dtype)
    array[at] = value
    array.tofile(path)


def test_a_sound_corpus_passes_every_check(packed_corpus: Path) -> None:
    assert _problems(packed_corpus, deep=True) == {}
    names = [check.name for check in verify(packed_corpus, deep=True)]
    assert names[-2:] == ["pack-256", "pack-64"]
    assert len(names) == 10


@pytest.mark.parametrize("suffix", ["tokens", "docs"])
def test_a_truncated_shard_is_refused_at_open_with_expected_and_found(
    packed_corpus: Path, suffix: str
) -> None:
    path = packed_corpus / f"shard-train-main-00001.{suffix}"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    message = rf"shard-train-main-00001\.{suffix}: damaged: expected {size} bytes, found {size - 2}"
    with pytest.raises(ValueError, match=message):
        open_corpus(packed_corpus)
    assert "shard-train-main-00001" in _problems(packed_corpus)["sizes"]


def test_a_missing_shard_is_refused(packed_corpus: Path) -> None:
    (packed_corpus / "shard-train-main-00000.tokens").unlink()
    with pytest.raises(ValueError, match=r"shard-train-main-00000\.tokens: missing; expected"):
        open_corpus(packed_corpus)


def test_deep_finds_one_flipped_bit(packed_corpus: Path) -> None:
    path = packed_corpus / "shard-val-main-00000.tokens"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert _problems(packed_corpus) == {}
    problem = _problems(packed_corpus, deep=True)["checksums"]
    assert "shard-val-main-00000.tokens: damaged: expected sha256" in problem


def test_an_id_outside_the_vocabulary_is_found(packed_corpus: Path) -> None:
    _patch(packed_corpus / "shard-train-main-00001.tokens", dtype="<u2", at=17, value=60_000)
    problem = _problems(packed_corpus)["ids"]
    assert (
        "shard-train-main-00001.tokens: token 17: expected an id below 400, found 60000" in problem
    )


def test_offsets_that_fall_are_found(packed_corpus: Path) -> None:
    path = packed_corpus / "shard-train-main-00000.docs"
    _patch(path, dtype="<i8", at=2, value=1)
    assert "document 1: expected an end above" in _problems(packed_corpus)["document offsets"]
    _patch(path, dtype="<i8", at=2, value=10**12)
    with pytest.raises(
        ValueError, match=r"shard-train-main-00000\.docs: damaged: document 1 spans"
    ):
        open_corpus(packed_corpus).document(1)


def test_a_document_that_lost_its_end_is_found(packed_corpus: Path) -> None:
    offsets = np.fromfile(packed_corpus / "shard-train-main-00000.docs", dtype="<i8")
    last = int(offsets[1]) - 1
    _patch(packed_corpus / "shard-train-main-00000.tokens", dtype="<u2", at=last, value=5)
    problem = _problems(packed_corpus)["document ends"]
    assert f"document 0: expected special id 0 at token {last}, found 5" in problem


def test_a_document_on_both_sides_is_found(packed_corpus: Path) -> None:
    """A held-out document copied over the first two of train."""
    corpus = open_corpus(packed_corpus)
    tokens = np.fromfile(packed_corpus / "shard-train-main-00000.tokens", dtype="<u2")
    offsets = np.fromfile(packed_corpus / "shard-train-main-00000.docs", dtype="<i8")
    number = next(
        i for i in range(corpus.num_documents("val")) if len(corpus.document(i, "val")) < offsets[2]
    )
    held_out = corpus.document(number, "val")
    tokens[: len(held_out)] = held_out
    offsets[1] = len(held_out)
    tokens.tofile(packed_corpus / "shard-train-main-00000.tokens")
    offsets.tofile(packed_corpus / "shard-train-main-00000.docs")
    problem = _problems(packed_corpus)["train/val overlap"]
    assert (
        f"shard-train-main-00000 document 0 and shard-val-main-00000 document {number}" in problem
    )


@pytest.mark.parametrize("name", ["pack-64", "pack-256"])
def test_a_token_packed_twice_or_never_is_found(packed_corpus: Path, name: str) -> None:
    path = packed_corpus / name / "train.pieces"
    pieces = np.fromfile(path, dtype="<i8").reshape(-1, 3)
    for change, expected in (
        ((5, 1, 1), "expected a piece from token"),  # piece 5 starts one token late
        ((5, 0, 1), "document"),  # piece 5 is of its neighbour
        ((5, 2, -1), "document"),  # piece 5 ends one token early
    ):
        row, column, step = change
        damaged = pieces.copy()
        damaged[row, column] += step
        damaged.tofile(path)
        assert expected in _problems(packed_corpus)[name]
        assert "damaged: expected sha256" in _problems(packed_corpus, deep=True)[name]


def test_a_pack_that_leads_outside_its_document_is_refused_by_the_reader(
    packed_corpus: Path,
) -> None:
    path = packed_corpus / "pack-64" / "train.pieces"
    for column, value in ((0, 10**9), (0, -1), (1, 10**9), (1, -3), (2, 65), (2, 0), (2, -4)):
        original = path.read_bytes()
        _patch(path, dtype="<i8", at=column, value=value)
        with pytest.raises(ValueError, match="damaged sample 0 of train"):
            open_corpus(packed_corpus).open_pack(64).sample(0)
        path.write_bytes(original)


def test_sample_bounds_that_lie_are_found(packed_corpus: Path) -> None:
    path = packed_corpus / "pack-64" / "train.samples"
    bounds = np.fromfile(path, dtype="<i8")
    several = int(np.flatnonzero(np.diff(bounds) > 1)[0])  # the sample before it is full
    _patch(path, dtype="<i8", at=several, value=int(bounds[several]) + 1)
    assert "expected at most 64 tokens" in _problems(packed_corpus)["pack-64"]
    _patch(path, dtype="<i8", at=1, value=10**10)
    with pytest.raises(ValueError, match="damaged sample 0"):
        open_corpus(packed_corpus).open_pack(64).sample(0)


@pytest.mark.parametrize(
    "name", ["../outside.tokens", "/etc/passwd", "sub/x", "..", ".hidden", "a\u0000b", ""]
)
def test_a_manifest_cannot_lead_out_of_its_folder(packed_corpus: Path, name: str) -> None:
    def change(manifest: Any) -> None:
        manifest["shards"][0]["tokens"]["name"] = name

    _edit(packed_corpus / "manifest.json", change)
    with pytest.raises(ValueError, match=r"shards\.0\.tokens\.name"):
        open_corpus(packed_corpus)
    assert "manifest" in _problems(packed_corpus)


def test_a_symbolic_link_out_of_the_folder_is_refused(packed_corpus: Path, tmp_path: Path) -> None:
    path = packed_corpus / "shard-train-main-00000.tokens"
    path.rename(tmp_path / "elsewhere.tokens")
    path.symlink_to(tmp_path / "elsewhere.tokens")
    with pytest.raises(ValueError, match="points outside its folder"):
        open_corpus(packed_corpus)


def test_another_tokenizer_in_the_folder_is_found(packed_corpus: Path) -> None:
    path = packed_corpus / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"merges"', '"merges" ', 1))
    assert "damaged" in _problems(packed_corpus)["tokenizer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=3), "schema_version"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m["domains"][0].pop("ledger"), "ledger"),
        (lambda m: m["shards"].pop(), "documents: expected"),
        (
            lambda m: m["domains"][0]["ledger"].update(num_tokens_left_out=1),
            "tokens in the ledger: expected",
        ),
        (lambda m: m["shards"][0].update(num_tokens=10**30), "num_tokens"),
        (lambda m: m["shards"][0].update(num_tokens=True), "num_tokens"),
        (lambda m: m.update(vocab_size=70_000), "does not fit token_dtype uint16"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    packed_corpus: Path, change: Callable[[Any], None], message: str
) -> None:
    _edit(packed_corpus / "manifest.json", change)
    with pytest.raises(ValueError, match=message):
        open_corpus(packed_corpus)


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_damage_to_a_manifest_raises_anything_but_our_error(
    packed_corpus: Path, data: st.DataObject
) -> None:
    path = packed_corpus / "manifest.json"
    original = path.read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(1, 40))] = data.draw(st.binary(max_size=8))
    path.write_bytes(bytes(content))
    try:
        assert isinstance(open_corpus(packed_corpus).manifest, Manifest)
    except ValueError as error:
        assert str(packed_corpus) in str(error)
    finally:
        path.write_bytes(original)


def test_a_folder_that_is_no_corpus_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        verify(tmp_path, deep=False)
    with pytest.raises(ValueError, match=r"python -m data_prep build. writes it when it finishes"):
        open_corpus(tmp_path)
