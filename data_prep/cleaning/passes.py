"""The cleaning passes over a corpus: they check their settings and write removal lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.names import checked_name
from data_prep.cleaning.contamination import (
    MIN_WORDS,
    Against,
    find_contamination,
    read_benchmark,
)
from data_prep.cleaning.documents import by_split, name_of, num_documents, reasons_by_split
from data_prep.cleaning.exact import find_exact_duplicates
from data_prep.cleaning.near import find_near_duplicates
from data_prep.cleaning.removals import (
    FOLDER_NAME,
    RECORD_NAME,
    Removals,
    write_removals,
)
from data_prep.durable import refuse_existing
from data_prep.executor import num_usable_cores, open_pool
from data_prep.record import printable_path
from data_prep.shards import Corpus, open_corpus


def dedup_exact(folder: Path, *, name: str, overwrite: bool, dry_run: bool) -> Removals:
    """List all documents with the same tokens as an earlier one."""
    corpus = _open(folder, name=name, overwrite=overwrite or dry_run)
    removed, kept = find_exact_duplicates(corpus)
    stays = dict(zip(removed.tolist(), kept.tolist(), strict=True))
    return write_removals(
        corpus,
        name=name,
        kind="exact",
        parameters={},
        documents=by_split(corpus, removed),
        reasons=reasons_by_split(
            corpus, removed, lambda number: {"kept": name_of(corpus, stays[number])}
        ),
        overwrite=overwrite,
        dry_run=dry_run,
    )


def dedup_near(
    folder: Path,
    *,
    threshold: float,
    ngram: int,
    num_perm: int,
    num_workers: int | None,
    name: str,
    overwrite: bool,
    dry_run: bool,
) -> Removals:
    """List all but the first document of every group of near duplicates."""
    if not 0 < threshold <= 1:
        raise ValueError(f"--threshold {threshold}: must be above 0 and at most 1")
    if ngram < 1:
        raise ValueError(f"--ngram {ngram}: must be at least 1")
    if not 16 <= num_perm <= 1024:
        raise ValueError(f"--num-perm {num_perm}: must be from 16 to 1024")
    corpus = _open(folder, name=name, overwrite=overwrite or dry_run)
    with open_pool(_workers(num_workers)) as pool:
        found = find_near_duplicates(
            corpus, threshold=threshold, ngram=ngram, num_perm=num_perm, pool=pool
        )
    stays = {
        number: (kept, similarity)
        for number, kept, similarity in zip(*(part.tolist() for part in found), strict=True)
    }

    def reason(number: int) -> dict[str, object]:
        kept, similarity = stays[number]
        return {"kept": name_of(corpus, kept), "similarity": round(similarity, 4)}

    return write_removals(
        corpus,
        name=name,
        kind="near",
        parameters={"threshold": threshold, "ngram": ngram, "num_perm": num_perm},
        documents=by_split(corpus, found.removed),
        reasons=reasons_by_split(corpus, found.removed, reason),
        overwrite=overwrite,
        dry_run=dry_run,
    )


def decontaminate(
    folder: Path,
    *,
    against: Sequence[str],
    keys: Sequence[str],
    ngram: int,
    min_matches: int,
    includes_val: bool,
    num_workers: int | None,
    name: str,
    overwrite: bool,
    dry_run: bool,
) -> Removals:
    """List all documents that share at least `min_matches` word n-grams with the files."""
    if ngram < MIN_WORDS:
        raise ValueError(
            f"--ngram {ngram}: must be at least {MIN_WORDS}; shorter matches are chance"
        )
    if min_matches < 1:
        raise ValueError(f"--min-matches {min_matches}: must be at least 1")
    corpus = _open(folder, name=name, overwrite=overwrite or dry_run)
    what = Against(tuple(map(str, against)), tuple(keys), ngram)
    benchmark = read_benchmark(what)
    with open_pool(_workers(num_workers)) as pool:
        matches = find_contamination(
            corpus,
            what,
            start=0 if includes_val else corpus.num_documents("val"),
            end=num_documents(corpus),
            pool=pool,
        )
    found = {match.number: match for match in matches if match.num_matches >= min_matches}
    removed = np.array(sorted(found), dtype=np.int64)

    def reason(number: int) -> dict[str, object]:
        match = found[number]
        return {
            "matched": match.place,
            "num_matches": match.num_matches,
            "words": match.text,
        }

    return write_removals(
        corpus,
        name=name,
        kind="decontaminate",
        parameters={
            "against": [printable_path(path) for path in what.paths],
            "text_keys": what.keys,
            "ngram": ngram,
            "min_matches": min_matches,
            **benchmark.counts(),
        },
        documents=by_split(corpus, removed),
        reasons=reasons_by_split(corpus, removed, reason),
        overwrite=overwrite,
        dry_run=dry_run,
    )


def _open(folder: Path, *, name: str, overwrite: bool) -> Corpus:
    """Open the corpus after checking that the list can be written."""
    checked_name(name, what="--name ")
    corpus = open_corpus(folder)
    out = corpus.folder / FOLDER_NAME / name
    refuse_existing(out, marker=RECORD_NAME, overwrite=overwrite)
    return corpus


def _workers(asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise ValueError(f"--workers {asked}: must be at least 1")
    return asked or num_usable_cores()
