"""Figures of a corpus, against plain counting."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.progress import progress_bar
from data_prep.reading.fields import Fields
from data_prep.shards import Corpus, open_corpus
from data_prep.viewing import stats
from data_prep.viewing.stats import corpus_stats

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def corpus(
    tmp_path: Path, texts: list[str], write_jsonl: Callable[..., Path], build_corpus
) -> Corpus:
    words = write_jsonl(tmp_path / "words.jsonl", [*texts, texts[0], texts[0], texts[5]])
    ids = tmp_path / "ids.jsonl"
    rows = [{"ids": [7] * n, "mask": [0] + [1] * (n - 1)} for n in (1, 2, 3, 64)]
    ids.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = build_corpus(
        f"words={words}",
        f"ids={ids}",
        fields_of={"ids": Fields(ids="ids", loss_mask="mask")},
        val_frac=0.2,
        shard_mib=0.01,
    )
    return open_corpus(folder)


def test_figures_equal_those_of_plain_counting(corpus: Corpus, monkeypatch) -> None:
    monkeypatch.setattr(stats, "_BLOCK_TOKENS", 1000)
    found = {(part.domain, part.split): part for part in corpus_stats(corpus, num_top=5)}
    for split in ("train", "val"):
        for domain, documents in corpus.domain_documents(split).items():
            ids = [corpus.document(i, split).tolist() for i in documents]
            if not ids:
                assert (domain, split) not in found
                continue
            part = found[domain, split]
            counts = Counter(token for document in ids for token in document)
            total = sum(counts.values())
            assert (part.num_documents, part.num_tokens) == (len(ids), total)
            assert part.num_ids_used == len(counts)
            entropy = -sum(n / total * math.log(n / total) for n in counts.values())
            assert part.unigram_entropy_nats == pytest.approx(entropy, abs=1e-9)
            top = [token.count for token in part.top_tokens]
            assert top == [count for _, count in counts.most_common(5)]
            assert all(counts[token.id] == token.count for token in part.top_tokens)
            assert part.num_duplicates == len(ids) - len(set(map(tuple, ids)))
            lengths = sorted(map(len, ids))
            assert part.length_quantiles["longest"] == lengths[-1]
            assert part.length_quantiles["mean"] == pytest.approx(total / len(ids))
            bins = Counter(2 ** int(math.log2(length)) for length in lengths)
            assert {int(k): n for k, n in part.length_bins.items() if n} == dict(bins)
    masked = sum(part.num_masked_tokens for (domain, _), part in found.items() if domain == "ids")
    assert masked == 4


def test_the_verb_prints_a_picture_and_writes_the_same_as_json(
    corpus: Corpus, tmp_path: Path, run_cli: Cli
) -> None:
    code, out, error = run_cli("stats", corpus.folder, "--json", tmp_path / "s.json", "--top", 3)
    assert code == 0, error
    assert "words, train" in out and "█" in out and "identical to an earlier one" in out
    parts = json.loads((tmp_path / "s.json").read_text())
    assert {part["domain"] for part in parts} == {"words", "ids"}
    assert all(len(part["top_tokens"]) <= 3 for part in parts)
    bytes_per_token = next(p["bytes_per_token"] for p in parts if p["domain"] == "words")
    assert 1.5 < bytes_per_token < 6
    assert run_cli("stats", corpus.folder, "--top", 0)[0] == 2


def test_an_id_outside_the_vocabulary_is_named(corpus: Corpus, run_cli: Cli) -> None:
    shard = corpus.manifest.shards[0]
    path = corpus.folder / shard.tokens.name
    content = bytearray(path.read_bytes())
    content[:2] = b"\xff\xff"
    path.write_bytes(content)
    code, _, error = run_cli("stats", corpus.folder)
    assert code == 2
    expected = f"{shard.tokens.name}: damaged: expected ids below {corpus.vocab_size}, found 65535"
    assert expected in error


def test_finding_duplicates_holds_16_bytes_a_document() -> None:
    num_documents = 100_000
    tokens = np.arange(2 * num_documents, dtype="<u4")
    tokens[-2:] = tokens[:2]  # the last document is the first
    offsets = np.arange(0, 2 * num_documents + 1, 2)
    shard = SimpleNamespace(tokens=tokens, offsets=offsets)
    with progress_bar(None, what="test", unit=" tokens") as bar:
        tracemalloc.start()
        assert stats._num_duplicates([shard], bar=bar) == 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A block of offsets as Python numbers comes on top, whatever the size of the corpus.
    assert peak < 16 * num_documents + 2 * 2**20


def test_lengths_at_powers_of_two_fall_into_their_bins() -> None:
    lengths = [1, 2, 3, 4, 127, 128, 2**40 - 1, 2**40]
    shard = SimpleNamespace(offsets=np.concatenate([[0], np.cumsum(lengths)]))
    bins = stats._lengths([shard])["length_bins"]
    found = {int(first): count for first, count in bins.items() if count}
    assert found == {1: 1, 2: 2, 4: 1, 64: 1, 128: 1, 2**39: 1, 2**40: 1}
