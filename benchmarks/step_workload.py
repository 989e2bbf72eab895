"""What the benchmarks of a step run: its modes, a random model, samples in memory, an engine."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.step_meters import Took
from data_prep.shards import PackedSample
from tests.distributed import ranks_folder
from tests.training.layouts import make_regulariser, tiny_recipe, whole_epochs
from training.config.layout import batch_shape
from training.config.recipe import Recipe
from training.data.stream import SampleStream
from training.model.causal_lm import resolve_model_config
from training.model.ds_config import training_dtype
from training.model.engine import build_engine
from training.model.inputs import NO_REGULARISATION
from training.ranks.dist import Layout, init_layout
from training.regularisers.entropy_cache import EntropyCache
from training.run.step import train_step

# name: what its recipe changes. The method acts from the first step: see `make_recipe`.
MODES: dict[str, dict[str, Any]] = {
    "off": {"regulariser": "none"},
    "input_reference": {"entropy__source": "reference"},
    "input_cache": {"entropy__source": "cache"},
    "input_online": {"entropy__source": "online"},
    "loss_lagged": {"dropout__where": "loss", "entropy__threshold": "lagged"},
    "input_random": {"regulariser": "random_token_dropout"},
}


@dataclass(frozen=True)
class RandomPack:
    """In-memory samples of random documents, without padding."""

    seq_len: int
    vocab_size: int
    one_document: bool
    """A sample each; else their lengths are uniform, from 1 to the sample's."""
    num: int = 64

    def num_samples(self, split: str = "train") -> int:
        return self.num

    def sample(self, i: int, split: str = "train") -> PackedSample:
        rng = np.random.default_rng(i)
        position_ids, start = np.empty(self.seq_len, np.int64), 0
        while start < self.seq_len:
            drawn = self.seq_len if self.one_document else int(rng.integers(1, self.seq_len + 1))
            length = min(drawn, self.seq_len - start)
            position_ids[start : start + length] = np.arange(length)
            start += length
        return PackedSample(
            ids=rng.integers(0, self.vocab_size, self.seq_len),
            position_ids=position_ids,
            num_tokens=self.seq_len,
            in_loss=np.ones(self.seq_len, bool),
        )


def make_recipe(options: argparse.Namespace, tokens: int, mode: str, **changes: Any) -> Recipe:
    """Constant curriculum and a rate above 0, so that every step drops.

    Args:
        changes: further ones, `a__b=c` for the key a.b.
    """
    shape = {
        "vocab_size": options.vocab,
        "hidden_size": options.hidden,
        "intermediate_size": 3 * options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": options.hidden // 4,
        "initializer_range": 0.1,  # entropies differ well between tokens: few ties
        "max_position_embeddings": tokens,
    }
    keys = {
        **{f"model__config__{key}": value for key, value in shape.items()},
        "model__activation_checkpointing": options.activation_checkpointing,
        "data__sequence_tokens": tokens,
        "train__global_batch_tokens": options.samples * tokens,
        "train__micro_batch_samples": options.micro_samples,
        "train__sequence_parallel_size": options.sp,
        "train__gradient_clipping": 1.0,
        "optimizer__lr": 1e-4,
        "dropout__max_rate": 0.5,
    }
    return tiny_recipe(deepspeed=options.deepspeed, **keys | MODES[mode] | changes)


def filled_cache(pack: Any, layout: Layout) -> EntropyCache:
    """As after an epoch, with random values; a file that all ranks share."""
    cache = EntropyCache(ranks_folder() / "cache", num_samples=pack.num, sample_tokens=pack.seq_len)
    if layout.is_main:
        cache.clear()
        values = np.random.default_rng(0).gamma(1.0, 1.0, (pack.num, pack.seq_len))
        cache.write(range(pack.num), values.astype(np.float32), first=0)
    dist.barrier()
    return cache


def make_stream(options: argparse.Namespace, recipe: Recipe, layout: Layout) -> SampleStream:
    pack: Any = RandomPack(recipe.data.sequence_tokens, options.vocab, options.one_document)
    samples_per_step, _ = batch_shape(
        global_batch_tokens=recipe.train.global_batch_tokens,
        sequence_tokens=pack.seq_len,
        micro_batch_samples=options.micro_samples,
        dp_size=layout.dp_size,
    )
    return SampleStream(
        pack=pack,
        split="train",
        layout=layout,
        total_samples=10_000 * samples_per_step,
        samples_per_step=samples_per_step,
        micro_batch_samples=options.micro_samples,
        order=whole_epochs(pack.num, seed=recipe.seed),
    )


class Bench:
    """One rank's engine, and what each mode needs to run steps on it."""

    def __init__(self, options: argparse.Namespace, tokens: int, **changes: Any) -> None:
        layout = init_layout(sp_size=options.sp)
        torch.set_num_threads(options.threads)
        self.recipes = {
            mode: make_recipe(options, tokens, mode, **changes) for mode in options.modes
        }
        recipe = next(iter(self.recipes.values()))
        self.stream = make_stream(options, recipe, layout)
        self.model_config = resolve_model_config(
            recipe.model, vocab_size=options.vocab, dtype=training_dtype(recipe.deepspeed)
        )
        self.engine = build_engine(
            recipe,
            self.model_config,
            layout=layout,
            num_micro_steps=self.stream.num_micro_steps,
            regularisation=NO_REGULARISATION,
        )
        cache = filled_cache(self.stream.pack, layout)
        # kept over the rounds: a lagged threshold is that of the mode's step before
        self.regularisers = {
            mode: make_regulariser(
                recipe,
                self.engine,
                self.stream.pack,
                cache=cache if recipe.keeps_entropies else None,
            )
            for mode, recipe in self.recipes.items()
        }

    def step(self, mode: str, number: int) -> tuple[Took, dict[str, Any]]:
        """Seconds and metrics of one step; all ranks start it together."""
        dist.barrier()
        began = Took.now()
        row = self.train(mode, number)
        return Took.now().since(began), row

    def train(self, mode: str, number: int) -> dict[str, Any]:
        """The step alone, which waits for nothing that training does not wait for."""
        return train_step(
            self.engine,
            self.stream,
            self.regularisers[mode],
            step=number,
            trained_frac=0.5,
            lr=self.recipes[mode].optimizer.lr,
        ).row
