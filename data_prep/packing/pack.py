"""The pack verb: atomically writes an index of samples of S tokens next to the shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.progress import progress_bar
from data_prep.cleaning.removals import removals_fingerprint, removed_documents
from data_prep.durable import refuse_existing, staged_folder, write_durable
from data_prep.ledger import SPLITS, Split
from data_prep.packing.index import INDEX_DTYPE, PackIndex
from data_prep.packing.manifest import (
    PACK_NAME,
    DomainPack,
    PackManifest,
    PackWeight,
    Policy,
    SplitPack,
    pack_folder,
)
from data_prep.packing.mixture import check_weights, mix
from data_prep.packing.policies import Packing, best_fit, concat
from data_prep.packing.targets import count_targets
from data_prep.record import record_text
from data_prep.shards import Corpus, open_corpus


def pack(
    folder: Path,
    *,
    seq_len: int,
    policy: Policy = "best_fit",
    weights: Mapping[str, PackWeight] | None = None,
    overwrite: bool = False,
) -> PackIndex:
    """Pack every split of a corpus; an existing pack that matches is kept."""
    if seq_len < 2:
        raise ValueError(f"--seq-len {seq_len}: a sample needs 2 tokens to have one to predict")
    weights = dict(weights or {})
    corpus = open_corpus(folder)
    check_weights(corpus.domains, weights)
    out = pack_folder(folder, seq_len=seq_len)
    if (out / PACK_NAME).is_file() and not overwrite:
        return _keep(corpus, seq_len=seq_len, policy=policy, weights=weights)
    refuse_existing(out, marker=PACK_NAME, overwrite=overwrite)
    with staged_folder(out) as staging:
        splits = {
            split: _pack_split(corpus, split=split, seq_len=seq_len, policy=policy, into=staging)
            for split in SPLITS
        }
        if weights:
            mix(splits["train"].domains, weights)  # refused before anything is visible
        manifest = PackManifest(
            schema_version=2,
            seq_len=seq_len,
            policy=policy,
            corpus_fingerprint=corpus.fingerprint,
            removals_fingerprint=removals_fingerprint(corpus),
            weights=weights,
            splits=splits,
        )
        write_durable(staging / PACK_NAME, record_text(manifest))
    return corpus.open_pack(seq_len)


def _keep(
    corpus: Corpus, *, seq_len: int, policy: Policy, weights: dict[str, PackWeight]
) -> PackIndex:
    index = corpus.open_pack(seq_len)
    for what, found, asked in (
        ("policy", index.policy, policy),
        ("weights", _in_words(index.manifest.weights), _in_words(weights)),
    ):
        if found != asked:
            raise ValueError(
                f"{index.folder}: packed with {what} {found}, asked for {asked}; "
                "add --overwrite to pack again (runs that used it then cannot resume)"
            )
    return index


def _in_words(weights: Mapping[str, PackWeight]) -> str:
    words = [
        f"{name}: {what} {value:g}"
        for name, weight in sorted(weights.items())
        for what, value in weight.model_dump(exclude_none=True).items()
    ]
    return ", ".join(words) or "none"


class _Packed(NamedTuple):
    domain: DomainPack
    packing: Packing


def _pack_split(
    corpus: Corpus, *, split: Split, seq_len: int, policy: Policy, into: Path
) -> SplitPack:
    lengths = corpus.document_lengths(split)
    is_removed = np.zeros(len(lengths), dtype=bool)
    is_removed[removed_documents(corpus, split)] = True
    # concat does not know the number in advance, and finishes at once.
    num_pieces = int(np.sum(-(-lengths[~is_removed] // seq_len))) if policy == "best_fit" else None
    with progress_bar(num_pieces, what=f"pack {split}", unit=" pieces") as bar:
        packed = [
            _pack_domain(
                corpus,
                name,
                split=split,
                documents=documents,
                lengths=lengths[documents.start : documents.stop],
                is_removed=is_removed[documents.start : documents.stop],
                seq_len=seq_len,
                policy=policy,
                report=bar.update,
            )
            for name, documents in corpus.domain_documents(split).items()
        ]
    pieces = np.concatenate([item.packing.pieces for item in packed])
    bounds, num_before = [np.zeros(1, dtype=np.int64)], 0
    for item in packed:
        bounds.append(item.packing.samples[1:] + num_before)
        num_before += len(item.packing.pieces)
    files = {
        name: write_durable(into / f"{split}.{name}", np.ascontiguousarray(array).data)
        for name, array in (
            ("pieces", pieces.astype(INDEX_DTYPE, copy=False)),
            ("samples", np.concatenate(bounds).astype(INDEX_DTYPE, copy=False)),
        )
    }
    return SplitPack(domains=tuple(item.domain for item in packed), **files)


def _pack_domain(
    corpus: Corpus,
    name: str,
    *,
    split: Split,
    documents: range,
    lengths: np.ndarray,
    is_removed: np.ndarray,
    seq_len: int,
    policy: Policy,
    report: Callable[[int], object],
) -> _Packed:
    kept = np.flatnonzero(~is_removed)
    pack_lengths = best_fit if policy == "best_fit" else concat
    packing = pack_lengths(lengths[kept], seq_len=seq_len, report=report)
    pieces, samples = packing
    num_cut = int(np.count_nonzero(np.bincount(pieces[:, 0], minlength=1) > 1))
    pieces[:, 0] = kept[pieces[:, 0]]
    shards = [shard for shard in corpus.open_shards(split) if shard.shard.domain == name]
    num_targets = count_targets(pieces, shards=shards)
    pieces[:, 0] += documents.start
    num_samples = len(samples) - 1
    num_tokens = int(pieces[:, 2].sum())
    domain = DomainPack(
        name=name,
        num_documents=len(kept),
        num_documents_cut=num_cut,
        num_documents_removed=len(documents) - len(kept),
        num_tokens=num_tokens,
        num_tokens_removed=int(lengths[is_removed].sum()),
        num_samples=num_samples,
        num_pieces=len(pieces),
        num_targets=num_targets,
        num_padding=num_samples * seq_len - num_tokens,
    )
    return _Packed(domain, packing)
