"""Whatever stands in a manifest or a shard: our own error, or numbers; never a crash."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.cleaning.removals import Removals, removed_documents, write_removals
from data_prep.ledger import SPLITS
from data_prep.manifest import Manifest
from data_prep.packing.manifest import PackManifest, PackWeight
from data_prep.packing.pack import pack
from data_prep.record import Record, load_record
from data_prep.scores import ScoresManifest
from data_prep.shards import open_corpus
from data_prep.verify import verify
from tests import grids
from tests.scores import write_scores

# One corpus is damaged and mended again and again; a deadline would only measure the disk.
_FUZZ = settings(
    max_examples=150 if grids.WHOLE else 50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RECORDS: dict[str, type[Record]] = {
    "manifest.json": Manifest,
    "pack-64/pack.json": PackManifest,
    "removals/exact/removals.json": Removals,
    "scores-base/scores.json": ScoresManifest,
}
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**62, 2**63, 2**64, 10**400]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["../x", "/etc/passwd", "a/b", "", ".", "..", "CON", "x" * 300, "train"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@pytest.fixture
def damaged(packed_corpus: Path, tmp_path: Path) -> Path:
    """With a list of removals, packs made after it, weights and scores."""
    corpus = open_corpus(packed_corpus)
    write_removals(
        corpus,
        name="exact",
        kind="exact",
        parameters={},
        documents={"train": np.array([2, 5, 6]), "val": np.array([], dtype=np.int64)},
        reasons={"train": iter([{}, {}, {}]), "val": iter([])},
    )
    pack(packed_corpus, seq_len=64, weights={"main": PackWeight(epochs=2)}, overwrite=True)
    pack(packed_corpus, seq_len=256, policy="concat", overwrite=True)
    write_scores(
        corpus,
        lambda shard: np.ones(shard.num_tokens),
        name="base",
        measure="nll",
        model="m",
        seq_len=64,
    )
    return shutil.copytree(packed_corpus, tmp_path / "damaged")


def _read_everything(folder: Path) -> None:
    """All that training and people read of a corpus."""
    corpus = open_corpus(folder)
    for split in SPLITS:
        for i in range(min(corpus.num_documents(split), 200)):
            corpus.document(i, split)
            corpus.loss_mask(i, split)
        if corpus.num_documents(split):
            corpus.origin(0, split)
    for seq_len in (64, 256):
        index = corpus.open_pack(seq_len)
        for split in SPLITS:
            for i in range(min(index.num_samples(split), 20)):
                index.sample(i, split)
        index.mixture()
    scores = corpus.open_scores("base")
    for split in SPLITS:
        removed_documents(corpus, split)
        for i in range(min(corpus.num_documents(split), 20)):
            scores.document(i, split)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a tree of JSON."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*path, key))


def _replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(tree))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return copy


@pytest.mark.parametrize("name", RECORDS)
def test_any_value_anywhere_in_a_record_is_our_error_or_harmless(name: str, damaged: Path) -> None:
    whole = json.loads((damaged / name).read_text())
    del whole["sha256_of_the_rest"]  # or nothing but its refusal would be tried
    places = list(_places(whole))

    @_FUZZ
    @given(place=st.sampled_from(places), value=_VALUES)
    def check(place: tuple[Any, ...], value: Any) -> None:
        text = json.dumps(_replaced(whole, place, value))
        (damaged / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(ValueError):
            _read_everything(damaged)

    check()


@pytest.mark.parametrize("name", RECORDS)
def test_no_flipped_bit_of_a_record_goes_unnoticed(name: str, damaged: Path) -> None:
    """Every bit of its first lines, where the hash stands, and some behind them."""
    path = damaged / name
    whole = path.read_bytes()
    unnoticed = []
    for bit in [*range(1200), *range(1200, 8 * len(whole), 1 if grids.WHOLE else 37)]:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            load_record(RECORDS[name], path, made_by="the test")
            unnoticed.append(bit)
    assert unnoticed == []


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_without_its_hash_is_read_and_one_that_was_edited_is_not(
    name: str, damaged: Path
) -> None:
    path = damaged / name
    before = load_record(RECORDS[name], path, made_by="the test")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=2))
    with pytest.raises(ValueError, match="damaged or edited: its checksum is"):
        _read_everything(damaged)
    del content["sha256_of_the_rest"]
    path.write_text(json.dumps(content))
    assert load_record(RECORDS[name], path, made_by="the test") == before
    _read_everything(damaged)


@pytest.mark.parametrize("name", [*RECORDS, "inputs.jsonl"])
def test_bytes_that_are_no_record_are_our_error(name: str, damaged: Path) -> None:
    whole = (damaged / name).read_bytes()

    @_FUZZ
    @given(content=st.one_of(st.binary(max_size=200), st.integers(0, len(whole) - 2)))
    def check(content: bytes | int) -> None:
        cut = whole[:content] if isinstance(content, int) else content
        (damaged / name).write_bytes(cut)
        with pytest.raises(ValueError):
            _read_everything(damaged)

    check()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("removals/exact/docs.val", "removals"),
        ("removals/exact/report.jsonl", "removals"),
        ("scores-base/shard-val-main-00000.f16", "scores-base"),
    ],
)
def test_verify_knows_removals_and_scores(name: str, check: str, damaged: Path) -> None:
    whole = verify(damaged, deep=True)
    assert all(one.problem is None for one in whole)
    assert [one.name for one in whole][-4:] == ["removals", "pack-256", "pack-64", "scores-base"]
    path = damaged / name
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    (problem,) = (one.problem for one in verify(damaged, deep=False) if one.name == check)
    assert problem is not None
    assert f"{path}: damaged: expected {len(content)} bytes, found {len(content) + 1}" in problem
    if content:
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        (problem,) = (one.problem for one in verify(damaged, deep=True) if one.name == check)
        assert problem is not None
        assert f"{path}: damaged: " in problem


@pytest.mark.parametrize(
    "name",
    [
        "shard-train-main-00000.docs",
        "shard-train-main-00000.origins",
        "pack-64/train.pieces",
        "pack-64/train.samples",
        "removals/exact/docs.train",
    ],
)
def test_any_numbers_in_an_index_are_our_error_or_harmless(name: str, damaged: Path) -> None:
    """Of the right size, so that only the reader's own checks stand between them and the maps."""
    whole = np.frombuffer((damaged / name).read_bytes(), dtype="<i8")

    @_FUZZ
    @given(
        place=st.integers(0, len(whole) - 1),
        value=st.one_of(
            st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3), st.integers(0, len(whole))
        ),
    )
    def check(place: int, value: int) -> None:
        numbers = whole.copy()
        numbers[place] = value
        (damaged / name).write_bytes(numbers.tobytes())
        with contextlib.suppress(ValueError):
            _read_everything(damaged)

    check()
