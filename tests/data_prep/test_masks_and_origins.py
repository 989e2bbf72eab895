"""What is kept of a document beside its tokens: the loss mask, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_prep.reading.documents import BadInput
from data_prep.reading.fields import Fields
from data_prep.shards import open_corpus
from tests.data_prep.read_back import contents


def test_an_origin_leads_back_to_the_line(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    build_corpus: Callable[..., Path],
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    corpus = open_corpus(build_corpus(source, val_frac=0.5))
    assert corpus.num_documents("val") > 20
    from data_prep.tokenizing.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(corpus.tokenizer_dir)
    for split in ("train", "val"):
        origin = corpus.origin(5, split)
        with Path(origin.path).open("rb") as file:
            file.seek(origin.place)
            text = json.loads(file.readline())["text"]
        assert tokenizer.decode(corpus.document(5, split).tolist()) == text + "<eos>"


def test_masks_and_labels_of_ids_are_kept_beside_the_tokens(
    tmp_path: Path, build_corpus: Callable[..., Path]
) -> None:
    rows = [
        {"ids": [5, 6, 7], "mask": [0, 1, 1], "labels": [-100, 6, 7]},
        {"ids": [8], "mask": [1], "labels": [8]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    prints = set()
    for name in ("a.jsonl", "a.parquet"):
        for fields in (Fields(ids="ids", loss_mask="mask"), Fields(ids="ids", labels="labels")):
            out = tmp_path / f"{name}-{fields.loss_mask}"
            corpus = open_corpus(build_corpus(tmp_path / name, fields=fields, out=out))
            masks = [corpus.loss_mask(i) for i in range(2)]
            assert [mask.tolist() for mask in masks if mask is not None] == [[0, 1, 1], [1]]
            prints.add(corpus.fingerprint)
    assert len(prints) == 1
    plain = open_corpus(build_corpus(tmp_path / "a.jsonl", fields=Fields(ids="ids")))
    assert plain.loss_mask(0) is None
    assert plain.fingerprint not in prints


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"ids": [1, 2], "m": [1]}, "mask of another length: 'm' has 1 entries, 'ids' has 2"),
        ({"ids": [1, 2], "m": [1, 3]}, "not a mask: 'm' holds 3 at index 1, expected 0 or 1"),
        ({"ids": [1, 2], "m": "ab"}, "not ids: 'm' must be a list of integers"),
        ({"ids": [1, 2]}, "missing key 'm': keys: ids"),
    ],
)
def test_a_bad_mask_is_named(tmp_path: Path, row: dict[str, object], reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (bad,) = contents(tmp_path / "a.jsonl", fields=Fields(ids="ids", loss_mask="m"))
    assert isinstance(bad, BadInput)
    assert bad.sentence("a:1") == f"a:1: {reason}"


def test_booleans_are_a_mask_and_never_ids(tmp_path: Path) -> None:
    """To Python true is 1: a mask given as ids would be trained on."""
    rows = {"ids": [[1, 2]], "m": [[True, False]]}
    (tmp_path / "a.jsonl").write_text(json.dumps({key: of[0] for key, of in rows.items()}))
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        (document,) = contents(tmp_path / name, fields=Fields(ids="ids", loss_mask="m"))
        assert not isinstance(document, BadInput)
        for fields in (Fields(ids="m"), Fields(ids="ids", labels="m")):
            (bad,) = contents(tmp_path / name, fields=fields)
            assert isinstance(bad, BadInput)
            assert bad.sentence("a:1") == "a:1: not ids: 'm' must be a list of integers"


def test_labels_that_are_other_ids_are_refused(tmp_path: Path) -> None:
    """Shifted labels would be taken for targets without a word."""
    (tmp_path / "a.jsonl").write_text('{"ids": [1, 2, 3], "labels": [2, 3, -100]}')
    (bad,) = contents(tmp_path / "a.jsonl", fields=Fields(ids="ids", labels="labels"))
    assert isinstance(bad, BadInput)
    assert "holds 2 at index 0, expected the id or -100" in str(bad.detail)


def test_ids_above_what_the_shards_hold_never_wrap(
    tmp_path: Path, build_corpus: Callable[..., Path]
) -> None:
    table = pyarrow.table({"ids": [np.array([1, 2**32 + 5], dtype=np.uint64)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="id outside the vocabulary: 4294967301 at index 1"):
        build_corpus(tmp_path / "a.parquet", fields=Fields(ids="ids"))
