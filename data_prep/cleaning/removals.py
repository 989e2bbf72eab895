"""Removal lists: documents to leave out, stored next to the unchanged shards."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from common.commands import command
from common.names import NAME_PATTERN
from data_prep.durable import describe_file, refuse_existing, staged_folder, write_durable
from data_prep.ledger import SPLITS, Split
from data_prep.manifest import DomainName
from data_prep.mapped import map_array
from data_prep.record import (
    Count,
    FileRecord,
    Record,
    Sha256,
    load_record,
    must_agree,
    record_text,
)

if TYPE_CHECKING:
    from data_prep.shards import Corpus

FOLDER_NAME = "removals"
RECORD_NAME = "removals.json"
REPORT_NAME = "report.jsonl"
Kind = Literal["exact", "near", "decontaminate"]
_DOCUMENT_DTYPE = np.dtype("<i8")


class RemovedOfDomain(Record):
    name: DomainName
    num_documents: Count
    num_tokens: Count


class RemovedOfSplit(Record):
    documents: FileRecord
    """int64 numbers of documents within the split, ascending."""
    domains: tuple[RemovedOfDomain, ...]


class Removals(Record):
    """One pass over a corpus and the documents it removes."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    kind: Kind
    corpus_fingerprint: Sha256
    parameters: dict[str, Any]
    splits: dict[Split, RemovedOfSplit]
    report: FileRecord
    """JSON lines: every removal with its origin and its reason."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if set(self.splits) != set(SPLITS):
            raise ValueError(f"splits: expected {list(SPLITS)}, found {sorted(self.splits)}")
        for split, part in self.splits.items():
            must_agree(
                f"{split} documents bytes",
                expected=sum(domain.num_documents for domain in part.domains) * 8,
                found=part.documents.num_bytes,
            )
        return self


def load_removals(folder: Path) -> list[Removals]:
    """All finished passes over a corpus, sorted by name."""
    passes = []
    for path in sorted((folder / FOLDER_NAME).glob(f"[!.]*/{RECORD_NAME}")):
        removals = load_record(
            Removals, path, made_by=f"`{command('data_prep dedup')}` or `decontaminate`"
        )
        if removals.name != path.parent.name:
            raise ValueError(f"{path}: name: expected {path.parent.name}, found {removals.name}")
        passes.append(removals)
    return passes


def removed_documents(corpus: Corpus, split: Split) -> np.ndarray:
    """Numbers of the documents that any pass removes, int64, unique and ascending."""
    found = [np.zeros(0, dtype=np.int64)]
    for removals in _passes_of(corpus):
        record = removals.splits[split].documents
        folder = corpus.folder / FOLDER_NAME / removals.name
        numbers = map_array(folder, record, dtype=_DOCUMENT_DTYPE)
        if describe_file(folder / record.name).sha256 != record.sha256:
            raise ValueError(
                f"{folder / record.name}: damaged: its checksum differs from the recorded one"
            )
        _check_numbers(numbers, total=corpus.num_documents(split), path=folder / record.name)
        found.append(numbers)
    return np.unique(np.concatenate(found))


def removals_fingerprint(corpus: Corpus) -> str | None:
    """SHA-256 of what the passes remove, independent of their names; None without a pass."""
    hashes = sorted(
        [removals.splits[split].documents.sha256 for split in SPLITS]
        for removals in _passes_of(corpus)
    )
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest() if hashes else None


def write_removals(
    corpus: Corpus,
    *,
    name: str,
    kind: Kind,
    parameters: Mapping[str, Any],
    documents: Mapping[Split, np.ndarray],
    reasons: Mapping[Split, Iterator[dict[str, Any]]],
    overwrite: bool = False,
    dry_run: bool = False,
) -> Removals:
    """Write one pass atomically; in a dry run, only return what it would be.

    Args:
        documents: numbers within each split, ascending.
        reasons: why each of these documents is removed, in the same order.
    """
    out = corpus.folder / FOLDER_NAME / name
    with _scratch_folder() if dry_run else _new_folder(out, overwrite=overwrite) as staging:
        with (staging / REPORT_NAME).open("w", encoding="utf-8") as report:
            for split in SPLITS:
                for number, reason in zip(documents[split].tolist(), reasons[split], strict=True):
                    line = _place_of(corpus, number, split) | reason
                    report.write(json.dumps(line, ensure_ascii=False) + "\n")
        splits = {}
        for split in SPLITS:
            content = np.ascontiguousarray(documents[split], dtype=_DOCUMENT_DTYPE)
            splits[split] = RemovedOfSplit(
                documents=write_durable(staging / f"docs.{split}", content.data),
                domains=_by_domain(corpus, content, split=split),
            )
        removals = Removals(
            schema_version=1,
            name=name,
            kind=kind,
            corpus_fingerprint=corpus.fingerprint,
            parameters=dict(parameters),
            splits=splits,
            report=describe_file(staging / REPORT_NAME),
        )
        write_durable(staging / RECORD_NAME, record_text(removals))
    return removals


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def _new_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    refuse_existing(out, marker=RECORD_NAME, overwrite=overwrite)
    with staged_folder(out) as staging:
        yield staging


def _passes_of(corpus: Corpus) -> list[Removals]:
    passes = load_removals(corpus.folder)
    for removals in passes:
        if removals.corpus_fingerprint != corpus.fingerprint:
            verb = "decontaminate" if removals.kind == "decontaminate" else "dedup"
            raise ValueError(
                f"{corpus.folder / FOLDER_NAME / removals.name}: made for another corpus: expected "
                f"fingerprint {corpus.fingerprint[:16]}, found {removals.corpus_fingerprint[:16]}; "
                f"run `{command(f'data_prep {verb} {corpus.folder}')}` again with --overwrite, or "
                "delete the folder"
            )
    return passes


def _check_numbers(numbers: np.ndarray, *, total: int, path: Path) -> None:
    if len(numbers) and not (
        numbers[0] >= 0 and numbers[-1] < total and (np.diff(numbers) > 0).all()
    ):
        raise ValueError(f"{path}: damaged: expected ascending numbers in [0, {total})")


def _place_of(corpus: Corpus, number: int, split: Split) -> dict[str, Any]:
    return {
        "split": split,
        "document": number,
        "origin": str(corpus.origin(number, split)),
        "num_tokens": len(corpus.document(number, split)),
    }


def _by_domain(corpus: Corpus, numbers: np.ndarray, *, split: Split) -> tuple[RemovedOfDomain, ...]:
    parts = []
    for name, documents in corpus.domain_documents(split).items():
        own = numbers[(numbers >= documents.start) & (numbers < documents.stop)]
        num_tokens = sum(len(corpus.document(number, split)) for number in own.tolist())
        parts.append(RemovedOfDomain(name=name, num_documents=len(own), num_tokens=num_tokens))
    return tuple(parts)
