"""Engines, corpora and models small enough to compare layouts on two cores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.packing.mixture import DomainShare, Mixture
from data_prep.shards import PackedSample, TopK
from training.config.load import parse_recipe
from training.config.recipe import Recipe
from training.data.sample_order import SampleOrder
from training.regularisers.base import Regulariser, RunParts
from training.regularisers.entropy_cache import EntropyCache
from training.regularisers.table import build_regulariser

VOCAB_SIZE = 101
SEQUENCE_TOKENS = 32
ZERO1_FP32 = str(Path(__file__).with_name("zero1_fp32.json"))
"""Stage 1 in fp32, which is for comparisons alone."""


@dataclass(frozen=True)
class UnevenPack:
    """In-memory samples of uneven documents, some with padding; no two alike."""

    num: int = 8
    seq_len: int = SEQUENCE_TOKENS
    seed: int = 0

    def num_samples(self, split: str = "train") -> int:
        return self.num

    def sample(self, i: int, split: str = "train") -> PackedSample:
        rng = np.random.default_rng((self.seed, i, split == "val"))
        num_tokens = self.seq_len - int(rng.integers(0, 9))
        ids = rng.integers(0, VOCAB_SIZE, self.seq_len)
        position_ids, start = np.empty(self.seq_len, np.int64), 0
        while start < num_tokens:
            length = min(int(rng.integers(1, 14)), num_tokens - start)
            position_ids[start : start + length] = np.arange(length)
            start += length
        position_ids[num_tokens:] = np.arange(self.seq_len - num_tokens)
        in_loss = (rng.random(self.seq_len) < 0.9) & (np.arange(self.seq_len) < num_tokens)
        return PackedSample(
            ids=ids, position_ids=position_ids, num_tokens=num_tokens, in_loss=in_loss
        )


class RandomScores:
    """Scores of the samples of an `UnevenPack`, with ties and some that are not there."""

    def sample(self, pack: UnevenPack, i: int, split: str = "train") -> np.ndarray:
        rng = np.random.default_rng((7, i))
        scores = rng.gamma(1.0, 1.0, pack.seq_len).round(1).astype(np.float16)
        scores[rng.random(pack.seq_len) < 0.05] = np.nan
        return scores.astype(np.float32)


class RandomTopK:
    """The likeliest tokens at the places of an `UnevenPack`, some of them not there."""

    def top_k(
        self, pack: UnevenPack, i: int, split: str = "train", *, first: int = 0, count: int
    ) -> TopK:
        rng = np.random.default_rng((8, i))
        order = rng.permuted(np.tile(np.arange(VOCAB_SIZE), (pack.seq_len + 1, 1)), axis=1)
        weights = rng.gamma(0.3, 1.0, (pack.seq_len + 1, 6)) + 1e-3
        log_probs = np.log(weights / weights.sum(axis=1, keepdims=True)).astype(np.float16)
        log_probs[rng.random(pack.seq_len + 1) < 0.1] = np.nan
        log_probs[-1] = np.nan  # behind the sample
        own = slice(first, first + count)
        return TopK(order[own, :5].astype(np.int32), log_probs[own])


def make_regulariser(
    recipe: Recipe, engine: Any, pack: Any, *, cache: EntropyCache | None = None
) -> Regulariser:
    """The one that a recipe names, scores being those of `RandomScores`."""
    uses_scores = recipe.uses_scores and not recipe.keeps_entropies
    scores: Any = RandomScores() if uses_scores else None
    mixture = whole_epoch(pack.num_samples())
    return build_regulariser(recipe, RunParts(engine, pack, mixture, scores, cache))


def whole_epoch(num_samples: int) -> Mixture:
    """A corpus of one domain, gone through once an epoch."""
    return (DomainShare("all", range(num_samples), num_samples, 0, 0),)


def whole_epochs(num_samples: int, *, seed: int) -> SampleOrder:
    """The order of such a corpus."""
    return SampleOrder(whole_epoch(num_samples), seed=seed)


def tiny_recipe(**changes: Any) -> Recipe:
    """A Qwen3-shaped model of a few thousand weights in fp32; `a__b=c` sets the key a.b."""
    raw: dict[str, Any] = {
        "run_dir": "unused",
        "deepspeed": "ds_configs/zero3_fp32.json",
        "model": {
            "config": {
                "model_type": "qwen3",
                "vocab_size": VOCAB_SIZE,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "tie_word_embeddings": True,
                # weights large enough that entropies differ well between tokens
                "initializer_range": 0.3,
            }
        },
        "data": {"corpus": "unused", "sequence_tokens": SEQUENCE_TOKENS},
        "train": {"global_batch_tokens": 8 * SEQUENCE_TOKENS, "gradient_clipping": None},
        "optimizer": {"lr": 1e-2},
        "schedule": {"kind": "constant", "warmup_frac": 0.0},
        "dropout": {"max_rate": 0.6, "quantile": 0.5, "curriculum": {"kind": "constant"}},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return parse_recipe(raw)
