"""A tiny model of the recipe's family, on the recipe's own layout, attention and DeepSpeed JSON.

T tokens of a whole sequence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_prep.shards import PackedSample, PackIndex
from launch.preflight.model import model_config
from launch.preflight.setting import Context
from training.config.recipe import Recipe
from training.config.sections import Model
from training.config.shipped import find_ds_config
from training.data.stream import SampleStream
from training.model import tiny
from training.model.attention import ATTENTION_NAME
from training.model.engine import Engine, build_engine
from training.model.inputs import NO_REGULARISATION

_SHARD_TOKENS = 48
_CLEAR_RANGE = 0.3
"""Scale of weights: attention then moves entropies by far more than bf16 rounds them."""
_LENGTHS = (7, 11, 1, 9, 4, 13, 2, 30)
"""Lengths of documents, in turn: shards begin within documents, and some documents span shards."""
_BUCKET_NUMBERS = 1_000_000


@dataclass(frozen=True)
class TinyPack:
    """Samples in memory; no two alike, and their documents begin at different positions."""

    num: int
    seq_len: int
    seed: int = 0
    changed: bool = False
    """Other tokens in one document of each sample, that of `changed_document`."""

    def num_samples(self, split: str = "train") -> int:
        return self.num

    def position_ids(self, i: int) -> np.ndarray:
        """`[T]`, restarting at 0 in each document."""
        positions: list[int] = []
        turn = i
        while len(positions) < self.seq_len:
            positions += range(_LENGTHS[turn % len(_LENGTHS)])
            turn += 1
        return np.array(positions[: self.seq_len])

    def changed_document(self, i: int) -> slice:
        """The document in the middle, across the border of two shards if there are several."""
        starts = [*np.flatnonzero(self.position_ids(i) == 0).tolist(), self.seq_len]
        number = int(np.searchsorted(starts, self.seq_len // 2, side="right"))
        return slice(starts[number - 1], starts[number])

    def sample(self, i: int, split: str = "train") -> PackedSample:
        rng = np.random.default_rng((self.seed, i))
        ids = rng.integers(0, tiny.VOCAB_SIZE, self.seq_len)
        in_loss = rng.random(self.seq_len) < 0.9
        if self.changed:
            where = self.changed_document(i)
            ids[where] = (ids[where] + 1 + rng.integers(0, 100)) % tiny.VOCAB_SIZE
        return PackedSample(
            ids=ids,
            position_ids=self.position_ids(i),
            num_tokens=self.seq_len,
            in_loss=in_loss,
        )


def make_pack(context: Context, *, num_micro_steps: int, changed: bool = False) -> TinyPack:
    """One sample for each group of ranks that shares a sequence, in each micro-step."""
    return TinyPack(
        num=context.layout.dp_size * num_micro_steps,
        seq_len=_SHARD_TOKENS * context.layout.sp_size,
        changed=changed,
    )


def make_stream(context: Context, pack: TinyPack) -> SampleStream:
    """One step that takes the whole pack, cut as training cuts its batches."""
    return SampleStream(
        pack=cast(PackIndex, pack),
        split="train",
        layout=context.layout,
        total_samples=pack.num,
        samples_per_step=pack.num,
        micro_batch_samples=1,
    )


def tiny_config(recipe: Recipe, *, dtype: torch.dtype) -> PretrainedConfig:
    """The recipe's architecture with its own heads, but narrow and of few layers.

    Raises:
        ValueError: for a model that comes with its own code.
    """
    whole = model_config(recipe)
    if getattr(whole, "auto_map", None):
        raise ValueError("the model's code comes with it (model.trust_remote_code)")
    config = tiny.tiny_config(
        recipe.model, whole, sequence_tokens=recipe.data.sequence_tokens
    ).get_text_config()
    config.dtype = dtype
    return config


@contextmanager
def tiny_recipe(context: Context, *, dtype: torch.dtype) -> Iterator[Recipe]:
    """The recipe for such a model: its layout and DeepSpeed JSON, with buckets that suit it."""
    recipe = context.recipe
    with TemporaryDirectory(prefix="preflight-") as folder:
        path = Path(folder) / "deepspeed.json"
        path.write_text(json.dumps(_tiny_ds_config(recipe, dtype=dtype)), encoding="utf-8")
        pack = make_pack(context, num_micro_steps=1)
        yield replace(
            recipe,
            deepspeed=str(path),
            regularisers=("none",),
            adapter=None,
            model=Model(
                config={"model_type": "preflight"},
                activation_checkpointing=recipe.model.activation_checkpointing,
                activation_offloading=recipe.model.activation_offloading,
                tiled_mlp=recipe.model.tiled_mlp,
            ),
            data=replace(recipe.data, sequence_tokens=pack.seq_len),
            train=replace(
                recipe.train,
                global_batch_tokens=pack.seq_len,
                micro_batch_samples=1,
                gradient_clipping=None,
                z_loss=0.0,
            ),
        )


def _tiny_ds_config(recipe: Recipe, *, dtype: torch.dtype) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(
        find_ds_config(recipe.deepspeed).read_text(encoding="utf-8")
    )
    config["bf16"] = config.get("bf16", {}) | {"enabled": dtype is torch.bfloat16}
    zero = config["zero_optimization"]
    sizes = ["reduce_bucket_size"]
    if zero.get("stage") == 3:
        sizes.append("stage3_prefetch_bucket_size")
    for key in sizes:
        zero[key] = min(zero.get(key, _BUCKET_NUMBERS), _BUCKET_NUMBERS)
    zero.pop("zero_hpz_partition_size", None)  # DeepSpeed makes its groups once a process
    return config


@contextmanager
def tiny_engine(
    context: Context, *, dtype: torch.dtype, num_micro_steps: int
) -> Iterator[tuple[Recipe, Engine]]:
    """Such a model under ZeRO and Ulysses; every rank calls it together."""
    with tiny_recipe(context, dtype=dtype) as recipe:
        config = tiny_config(context.recipe, dtype=dtype)
        config.initializer_range = _CLEAR_RANGE
        engine = build_engine(
            recipe,
            config,
            layout=context.layout,
            num_micro_steps=num_micro_steps,
            regularisation=NO_REGULARISATION,
        )
    try:
        yield recipe, engine
    finally:
        engine.ds.destroy()
        _forget_ulysses()


def _forget_ulysses() -> None:
    """DeepSpeed shards sequences once per process; the next engine needs its own groups, and must
    not wrap attention that is already wrapped."""
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    parallel_state_sp._SEQUENCE_PARALLEL_GROUP = None
    parallel_state_sp._SEQUENCE_DATA_PARALLEL_GROUP = None
    with suppress(KeyError):  # without Ulysses only the registered one exists
        del ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]
