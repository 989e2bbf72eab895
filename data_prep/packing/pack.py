"""The pack verb: an index of samples of S tokens beside the shards, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.durable import refuse_existing, staged_folder, write_durable
from data_prep.ledger import SPLITS, Split
from data_prep.packing.index import (
    INDEX_DTYPE,
    PACK_NAME,
    PackIndex,
    PackManifest,
    Policy,
    SplitPack,
    pack_folder,
)
from data_prep.packing.policies import Packing, best_fit, concat
from data_prep.progress import progress_bar
from data_prep.shards import Corpus, open_corpus


def pack(
    folder: Path, *, seq_len: int, policy: Policy = "best_fit", overwrite: bool = False
) -> PackIndex:
    """Pack every split of a corpus; a pack that is there already and fits is left alone."""
    if seq_len < 2:
        raise ValueError(f"--seq-len {seq_len}: a sample needs 2 tokens to have one to predict")
    corpus = open_corpus(folder)
    out = pack_folder(folder, seq_len=seq_len)
    if (out / PACK_NAME).is_file() and not overwrite:
        return _keep(corpus, seq_len=seq_len, policy=policy)
    refuse_existing(out, marker=PACK_NAME, overwrite=overwrite)
    with staged_folder(out) as staging:
        splits = {
            split: _pack_split(corpus, split=split, seq_len=seq_len, policy=policy, into=staging)
            for split in SPLITS
        }
        manifest = PackManifest(
            schema_version=1,
            seq_len=seq_len,
            policy=policy,
            corpus_fingerprint=corpus.fingerprint,
            splits=splits,
        )
        write_durable(staging / PACK_NAME, manifest.model_dump_json(indent=2).encode())
    return corpus.open_pack(seq_len)


def _keep(corpus: Corpus, *, seq_len: int, policy: Policy) -> PackIndex:
    index = corpus.open_pack(seq_len)
    if index.policy != policy:
        raise ValueError(
            f"{index.folder}: packed with policy {index.policy}, asked for {policy}; "
            "add --overwrite to pack again (runs that used it then cannot resume)"
        )
    return index


def _pack_split(
    corpus: Corpus, *, split: Split, seq_len: int, policy: Policy, into: Path
) -> SplitPack:
    lengths = corpus.document_lengths(split)
    if policy == "concat":
        packing = concat(lengths, seq_len=seq_len)
    else:
        num_pieces = int(np.sum(-(-lengths // seq_len)))
        with progress_bar(num_pieces, what=f"pack {split}", unit=" pieces") as bar:
            packing = best_fit(lengths, seq_len=seq_len, report=bar.update)
    return _write_split(packing, split=split, seq_len=seq_len, into=into)


def _write_split(packing: Packing, *, split: Split, seq_len: int, into: Path) -> SplitPack:
    num_tokens = int(packing.pieces[:, 2].sum())
    num_samples = len(packing.samples) - 1
    files = {}
    for name, array in (("pieces", packing.pieces), ("samples", packing.samples)):
        content = np.ascontiguousarray(array, dtype=INDEX_DTYPE)
        files[name] = write_durable(into / f"{split}.{name}", content.data)
    return SplitPack(
        num_samples=num_samples,
        num_pieces=len(packing.pieces),
        num_tokens=num_tokens,
        num_targets=num_tokens - len(packing.pieces),
        num_padding=num_samples * seq_len - num_tokens,
        pieces=files["pieces"],
        samples=files["samples"],
    )
