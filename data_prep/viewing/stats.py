"""The stats verb: what a corpus is made of, by domain and split, in numbers and a histogram."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from common.progress import progress_bar
from data_prep.ledger import SPLITS, Split
from data_prep.record import Count, Record
from data_prep.shards import Corpus, MappedShard
from data_prep.tokenizing.tokenizer import Tokenizer, load_tokenizer
from data_prep.viewing.show import printable

_BLOCK_TOKENS = 1 << 22
_BLOCK_DOCUMENTS = 1 << 14
_SAMPLED_DOCUMENTS = 200
_SAMPLED_TOKENS = 5000
_BAR_COLUMNS = 40


class TopToken(Record):
    id: Count
    text: str
    count: Count


class DomainStats(Record):
    """One domain in one split."""

    domain: str
    split: Split
    num_documents: Count
    num_tokens: Count
    num_masked_tokens: Count
    """Masked out of the loss."""
    num_duplicates: Count
    """Documents with the same tokens as an earlier one of the same domain and split."""
    length_quantiles: dict[str, float]
    """Of document lengths in tokens."""
    length_bins: dict[str, Count]
    """Documents by length, "64" for lengths from 64 to 127."""
    num_ids_used: Count
    unigram_entropy_nats: float
    """Of the distribution of ids: the loss of predicting by frequency alone."""
    bytes_per_token: float
    """UTF-8 bytes of decoded text per token, over the beginnings of some documents."""
    num_documents_decoded: Count
    """Number of those documents, spread evenly."""
    top_tokens: tuple[TopToken, ...]


def corpus_stats(corpus: Corpus, *, num_top: int) -> list[DomainStats]:
    """Read every token twice; memory holds 8 bytes per id of the vocabulary, 16 per document."""
    tokenizer = load_tokenizer(corpus.tokenizer_dir, fast=False)
    found = []
    total = sum(corpus.num_tokens(split) for split in SPLITS)
    with progress_bar(2 * total, what="count, compare", unit=" tokens") as bar:
        for split in SPLITS:
            for domain, documents in corpus.domain_documents(split).items():
                shards = [s for s in corpus.open_shards(split) if s.shard.domain == domain]
                if not documents:
                    continue
                counts = np.zeros(corpus.vocab_size, dtype=np.int64)
                for shard, block in _blocks(shards):
                    if (highest := int(block.max())) >= corpus.vocab_size:
                        raise ValueError(
                            f"{shard.shard.tokens.name}: damaged: expected ids below "
                            f"{corpus.vocab_size}, found {highest}; copy or build the corpus again"
                        )
                    counts += np.bincount(block, minlength=corpus.vocab_size)
                    bar.update(len(block))
                found.append(
                    DomainStats(
                        domain=domain,
                        split=split,
                        num_documents=len(documents),
                        num_tokens=int(counts.sum()),
                        num_masked_tokens=sum(_num_masked(shard) for shard in shards),
                        num_duplicates=_num_duplicates(shards, bar=bar),
                        **_lengths(shards),
                        **_ids(counts, tokenizer, num_top=num_top),
                        **_decoded(corpus, documents, split=split, tokenizer=tokenizer),
                    )
                )
    return found


def stats_lines(stats: Sequence[DomainStats]) -> Iterator[str]:
    """What a terminal shows."""
    for part in stats:
        yield f"{part.domain}, {part.split}"
        masked = part.num_masked_tokens / max(part.num_tokens, 1)
        yield (
            f"  documents   {part.num_documents:,}, {part.num_duplicates:,} of them "
            f"({part.num_duplicates / part.num_documents:.1%}) identical to an earlier one"
        )
        yield (
            f"  tokens      {part.num_tokens:,}, {masked:.1%} masked out of the loss, "
            f"{part.bytes_per_token:.2f} bytes each over {part.num_documents_decoded:,} documents"
        )
        yield (
            f"  vocabulary  {part.num_ids_used:,} distinct ids; unigram entropy "
            f"{part.unigram_entropy_nats:.3f} nats"
        )
        quantiles = ", ".join(
            f"{name} {value:,.0f}" for name, value in part.length_quantiles.items()
        )
        yield f"  lengths     {quantiles}"
        most = max(part.length_bins.values())
        for first, count in part.length_bins.items():
            bar = _bar(count / most)
            yield f"  {int(first):>10,}  {bar:<{_BAR_COLUMNS}} {count:,}"
        yield "  top tokens  " + "  ".join(
            f"{token.text!r} {token.count / part.num_tokens:.1%}" for token in part.top_tokens
        )


def _bar(share: float) -> str:
    eighths = max(round(share * _BAR_COLUMNS * 8), 1 if share else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _blocks(shards: Sequence[MappedShard]) -> Iterator[tuple[MappedShard, np.ndarray]]:
    for shard in shards:
        for start in range(0, len(shard.tokens), _BLOCK_TOKENS):
            yield shard, shard.tokens[start : start + _BLOCK_TOKENS]


def _num_masked(shard: MappedShard) -> int:
    if shard.mask is None:
        return 0
    return sum(
        int((shard.mask[start : start + _BLOCK_TOKENS] == 0).sum())
        for start in range(0, len(shard.mask), _BLOCK_TOKENS)
    )


def _num_duplicates(shards: Sequence[MappedShard], *, bar: tqdm[NoReturn]) -> int:
    # 16 bytes: with 8, two of a few billion different documents would often share a digest.
    # As text of a fixed width numpy sorts them in place.
    digests = np.empty(sum(len(shard.offsets) - 1 for shard in shards), dtype="S16")
    row = 0
    for shard in shards:
        for first in range(0, len(shard.offsets) - 1, _BLOCK_DOCUMENTS):
            bounds = shard.offsets[first : first + _BLOCK_DOCUMENTS + 1].tolist()
            for start, end in pairwise(bounds):
                ids = shard.tokens[start:end]
                digests[row] = hashlib.blake2b(ids.data, digest_size=16).digest()
                row += 1
            bar.update(bounds[-1] - bounds[0])
    digests.sort()
    return int((digests[1:] == digests[:-1]).sum())


def _lengths(shards: Sequence[MappedShard]) -> dict[str, Any]:
    lengths = np.concatenate([np.diff(shard.offsets) for shard in shards])
    lengths.sort()
    if lengths[0] < 1:
        raise ValueError(
            f"{shards[0].shard.docs.name} or a later shard: damaged: expected documents of 1 token "
            f"or more, found one of {lengths[0]}; copy or build the corpus again"
        )
    names = {"shortest": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}
    # Lengths of 64 to 127 have 7 binary digits and start at 2^6.
    first, last = int(lengths[0]).bit_length() - 1, int(lengths[-1]).bit_length()
    places = np.searchsorted(lengths, 2 ** np.arange(first, last + 1))
    bins = np.diff(places).tolist()
    mean = float(lengths.mean())
    # Last: it reorders the lengths, which saves a copy.
    quantiles = np.quantile(lengths, list(names.values()), overwrite_input=True).tolist()
    return {
        "length_quantiles": dict(zip(names, quantiles, strict=True)) | {"mean": mean},
        "length_bins": {str(2 ** (first + i)): count for i, count in enumerate(bins)},
    }


def _ids(counts: np.ndarray, tokenizer: Tokenizer, *, num_top: int) -> dict[str, Any]:
    used = counts[counts > 0]
    shares = used / used.sum()
    top = np.argsort(-counts, kind="stable")[:num_top]
    return {
        "num_ids_used": len(used),
        "unigram_entropy_nats": float(-(shares * np.log(shares)).sum()),
        "top_tokens": tuple(
            TopToken(id=token, text=printable(tokenizer.decode([token])), count=int(counts[token]))
            for token in top.tolist()
            if counts[token]
        ),
    }


def _decoded(
    corpus: Corpus, documents: range, *, split: Split, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Over the beginnings of documents; control tokens count as their names."""
    num_bytes = num_tokens = 0
    chosen = documents[:: max(1, len(documents) // _SAMPLED_DOCUMENTS)]
    for document in chosen:
        ids = corpus.document(document, split)[:_SAMPLED_TOKENS].tolist()
        num_bytes += len(tokenizer.decode(ids).encode("utf-8", "replace"))
        num_tokens += len(ids)
    return {
        "bytes_per_token": num_bytes / max(num_tokens, 1),
        "num_documents_decoded": len(chosen),
    }
