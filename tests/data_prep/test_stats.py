"""Figures of a corpus, against plain counting."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.reading.documents import Fields
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
    assert "words, train" in out and "█" in out and "the same as an earlier one" in out
    parts = json.loads((tmp_path / "s.json").read_text())
    assert {part["domain"] for part in parts} == {"words", "ids"}
    assert all(len(part["top_tokens"]) <= 3 for part in parts)
    bytes_per_token = next(p["bytes_per_token"] for p in parts if p["domain"] == "words")
    assert 1.5 < bytes_per_token < 6
    assert run_cli("stats", corpus.folder, "--top", 0)[0] == 2
