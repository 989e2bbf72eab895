"""The verify verb: checks a corpus and its packs against their manifests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.progress import progress_bar
from data_prep.checksums import check_checksums
from data_prep.cleaning.removals import FOLDER_NAME as REMOVALS_FOLDER
from data_prep.cleaning.removals import load_removals, removed_documents
from data_prep.ledger import SPLITS, Split
from data_prep.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest
from data_prep.mapped import checked_path
from data_prep.packing.verify import check_pack
from data_prep.record import files_sha256
from data_prep.shards import Corpus, open_corpus

_CHUNK_TOKENS = 1 << 22


@dataclass(frozen=True)
class Check:
    """One line of the table; `problem` is None if the check passed."""

    name: str
    detail: str
    problem: str | None = None


def verify(folder: Path, *, deep: bool) -> list[Check]:
    """Run every check that is possible; those that need a broken part are skipped."""
    if not (folder / MANIFEST_NAME).is_file():
        raise ValueError(f"{folder}: no {MANIFEST_NAME}; not a finished corpus folder")
    checks = [_run("manifest", lambda: _check_manifest(folder))]
    if checks[-1].problem:
        return checks
    manifest = load_manifest(folder)
    checks.append(_run("sizes", lambda: _check_sizes(folder, manifest=manifest)))
    checks.append(_run("tokenizer", lambda: _check_tokenizer(folder, manifest=manifest)))
    if checks[-2].problem:
        return checks
    if deep:
        files = manifest.files()
        checks.append(_run("checksums", lambda: check_checksums(folder, files=files)))
    corpus = open_corpus(folder)
    checks.append(_run("document offsets", lambda: _check_offsets(corpus)))
    if checks[-1].problem:
        return checks
    checks.append(_run("ids", lambda: _check_ids(corpus)))
    checks.append(_run("document ends", lambda: _check_ends(corpus)))
    checks.append(_run("train/val overlap", lambda: _check_overlap(corpus)))
    if (folder / REMOVALS_FOLDER).is_dir():
        checks.append(_run(REMOVALS_FOLDER, lambda: _check_removals(corpus, deep=deep)))
    for pack in sorted(folder.glob("pack-*")):
        checks.append(_run(pack.name, partial(check_pack, corpus, pack, deep=deep)))
    for name in corpus.score_names():
        checks.append(_run(f"scores-{name}", partial(_check_scores, corpus, name, deep=deep)))
    return checks


def _run(name: str, check: Callable[[], str]) -> Check:
    """A check returns a summary, or raises a ValueError that says what is wrong."""
    try:
        return Check(name, check())
    except (ValueError, OSError) as error:
        return Check(name, "", problem=str(error))


def _check_manifest(folder: Path) -> str:
    manifest = load_manifest(folder)
    ledger = manifest.ledger
    return f"{ledger.num_documents_kept:,} documents, {ledger.num_tokens_kept:,} tokens, adds up"


def _check_sizes(folder: Path, *, manifest: Manifest) -> str:
    for file in manifest.files():
        checked_path(folder, file)
    return f"{len(manifest.shards)} shards"


def _check_tokenizer(folder: Path, *, manifest: Manifest) -> str:
    """Small, so always by checksum: another tokenizer gives the same ids another meaning."""
    record = manifest.tokenizer
    summary = check_checksums(folder / "tokenizer", files=record.files)
    if files_sha256(record.files) != record.sha256:
        raise ValueError(f"tokenizer: expected sha256 {record.sha256[:16]} over its files")
    return summary


def _check_removals(corpus: Corpus, *, deep: bool) -> str:
    """The numbers are small, so always by checksum; the reports only if deep."""
    counts = [f"{len(removed_documents(corpus, split)):,} of {split}" for split in SPLITS]
    for removals in load_removals(corpus.folder):
        folder = corpus.folder / REMOVALS_FOLDER / removals.name
        checked_path(folder, removals.report)
        if deep:
            check_checksums(folder, files=[removals.report])
    return f"{' and '.join(counts)} left out"


def _check_scores(corpus: Corpus, name: str, *, deep: bool) -> str:
    scores = corpus.open_scores(name)
    if deep:
        check_checksums(scores.folder, files=scores.manifest.all_files)
    top_k = scores.manifest.top_k
    beside = f" and the {top_k.k} likeliest tokens" if top_k else ""
    return f"{scores.manifest.measure}{beside} by {scores.manifest.model}"


def _arrays(corpus: Corpus, *, split: Split) -> Iterator[tuple[Shard, np.ndarray, np.ndarray]]:
    for mapped in corpus.open_shards(split):
        yield mapped.shard, mapped.tokens, mapped.offsets


def _check_offsets(corpus: Corpus) -> str:
    for split in SPLITS:
        for shard, tokens, offsets in _arrays(corpus, split=split):
            found = (int(offsets[0]), int(offsets[-1]))
            if found != (0, len(tokens)):
                raise ValueError(
                    f"{shard.docs.name}: expected offsets from 0 to {len(tokens)}, "
                    f"found {found[0]} to {found[1]}"
                )
            wrong = np.flatnonzero(offsets[1:] <= offsets[:-1])
            if len(wrong):
                row = int(wrong[0])
                raise ValueError(
                    f"{shard.docs.name}: document {row}: expected an end above {offsets[row]}, "
                    f"found {offsets[row + 1]}"
                )
    return "increasing, no empty document"


def _check_ids(corpus: Corpus) -> str:
    num_tokens = sum(corpus.num_tokens(split) for split in SPLITS)
    with progress_bar(num_tokens, what="ids", unit=" tokens") as bar:
        for split in SPLITS:
            for shard, tokens, _ in _arrays(corpus, split=split):
                for start in range(0, len(tokens), _CHUNK_TOKENS):
                    chunk = tokens[start : start + _CHUNK_TOKENS]
                    if int(chunk.max()) >= corpus.vocab_size:
                        at = start + int(np.argmax(chunk >= corpus.vocab_size))
                        raise ValueError(
                            f"{shard.tokens.name}: token {at}: expected an id below "
                            f"{corpus.vocab_size}, found {tokens[at]}"
                        )
                    bar.update(len(chunk))
    return f"all below {corpus.vocab_size:,}"


def _check_ends(corpus: Corpus) -> str:
    special = corpus.manifest.special_ids
    prefix, suffix = special.document_prefix, special.document_suffix
    ledger = corpus.manifest.ledger
    if ledger.num_tokens_special != ledger.num_documents_kept * (len(prefix) + len(suffix)):
        return "not checked: some documents were given as ids, or are conversations"
    for split in SPLITS:
        for shard, tokens, offsets in _arrays(corpus, split=split):
            starts, ends = offsets[:-1], offsets[1:]
            places = [(starts + i, token) for i, token in enumerate(prefix)]
            places += [(ends - len(suffix) + i, token) for i, token in enumerate(suffix)]
            for at, token in places:
                wrong = np.flatnonzero(tokens[at] != token)
                if len(wrong):
                    row = int(wrong[0])
                    raise ValueError(
                        f"{shard.name}: document {row}: expected special id {token} at token "
                        f"{at[row]}, found {tokens[at[row]]}"
                    )
    ends_of = {"begins": list(prefix), "ends": list(suffix)}
    told = [f"{verb} with {ids}" for verb, ids in ends_of.items() if ids]
    return f"each {' and '.join(told)}" if told else "the tokenizer adds none"


def _check_overlap(corpus: Corpus) -> str:
    """Identical ids in both splits would be memorised and then count as generalisation."""
    held_out = {digest: where for where, digest in _digests(corpus, split="val")}
    if not held_out:
        return "no held-out documents"
    total = corpus.num_documents("train")
    with progress_bar(total, what="overlap", unit=" documents") as bar:
        for where, digest in _digests(corpus, split="train"):
            if digest in held_out:
                raise ValueError(
                    f"{where} and {held_out[digest]} hold the same tokens: expected no document "
                    "in both splits"
                )
            bar.update(1)
    return f"none of {len(held_out):,} held-out texts is in train"


def _digests(corpus: Corpus, *, split: Split) -> Iterator[tuple[str, bytes]]:
    for shard, tokens, offsets in _arrays(corpus, split=split):
        for row, (start, end) in enumerate(pairwise(offsets)):
            digest = hashlib.blake2b(tokens[start:end].data, digest_size=16).digest()
            yield f"{shard.name} document {row}", digest
