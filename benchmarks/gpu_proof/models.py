"""Whole steps of models in the shapes of Qwen3: speed, utilisation, launches, memory.

Milliseconds are of a micro-step, its share of the update included. MFU leaves out what is computed
twice and passes without gradient, HFU does not; both are of the peak in the GPU's data sheet, and
absent where that is not known. Gradients add up in fp32, as the JSONs leave it.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.device_time import median_milliseconds
from benchmarks.gpu_proof.meters import compare, count_launches, peaks_on_cpu, peaks_on_gpu
from benchmarks.gpu_proof.rows import Figures, Row, Skipped, need_package
from benchmarks.step_workload import Bench
from tests.training.stand_in_liger import stand_in_liger
from training.model.utilisation import Utilisation

_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)
_SHAPES = {
    "0.6b": (28, 1024, 3072, 16, 8, 128, 151_936, True),
    "8b cut": (8, 4096, 12_288, 32, 8, 128, 151_936, False),  # 8 of 36 layers
    "small": (2, 64, 192, 4, 2, 16, 512, True),
}
_ALL = ("off", "input_reference", "input_cache", "input_online", "loss_lagged")
_WARM_UP, _TIMED = 2, 3
"""Steps; in the first ones ZeRO-3 learns the order of the modules."""


@dataclass(frozen=True)
class _Setting:
    """An engine, and the modes that step on it in turn."""

    shape: str
    deepspeed: str
    micro_samples: int
    modes: tuple[str, ...]
    checkpointing: bool = False
    kernels: str = "plain"

    def options(self, small: bool) -> argparse.Namespace:
        shape = dict(zip(_KEYS, _SHAPES["small" if small else self.shape], strict=True))
        return argparse.Namespace(
            layers=shape["num_hidden_layers"],
            hidden=shape["hidden_size"],
            vocab=shape["vocab_size"],
            sequence_tokens=64 if small else 4096,
            samples=4,
            micro_samples=self.micro_samples,
            modes=self.modes,
            sp=1,
            threads=torch.get_num_threads(),
            one_document=False,
            activation_checkpointing=self.checkpointing,
            deepspeed=f"ds_configs/{self.deepspeed}.json",
            changes={f"model__config__{key}": value for key, value in shape.items()}
            | {"model__kernels": self.kernels},
        )


def rows_of_small_model(device: str, small: bool) -> Iterator[Row]:
    """ZeRO-1, as the recipe of Qwen3-0.6B has it; small micro-batches show the host's time."""
    off = _ALL[:1]
    for micro_samples, modes in (
        (1, _ALL),
        (2, off if small else _ALL[:2]),
        (4, off if small else _ALL),
    ):
        yield from _rows(_Setting("0.6b", "zero1", micro_samples, modes), device, small)


def rows_of_zero3(device: str, small: bool) -> Iterator[Row]:
    """The host's work is largest with a sample in a micro-step, and a probe gathers weights again.

    `zero3_whole` comes first: `zero3` replaces torch's linear layer in the whole process.
    """
    for deepspeed, modes in (("zero3_whole", _ALL[:1]), ("zero3", ("off", "input_online"))):
        yield from _rows(_Setting("0.6b", deepspeed, 1, modes), device, small)


def rows_of_liger(device: str, small: bool) -> Iterator[Row]:
    """Liger's kernels; on a CPU a stand-in in torch."""
    with nullcontext() if device == "cuda" else stand_in_liger():
        setting = _Setting("0.6b", "zero1", 4, _ALL[:2], kernels="liger")
        yield from _rows(setting, device, small)


def rows_of_cut_model(device: str, small: bool) -> Iterator[Row]:
    """Layers of Qwen3-8B, with the checkpointing and the JSON of its recipe."""
    setting = _Setting("8b cut", "zero3", 1, _ALL[:2], checkpointing=True)
    yield from _rows(setting, device, small)


def _rows(setting: _Setting, device: str, small: bool) -> Iterator[Row]:
    """The start of an engine, steps of each mode, memory; the rest only after a start."""
    name = f"{setting.shape} {setting.deepspeed}, {setting.micro_samples} in a micro-step"
    options = setting.options(small)
    held_bytes = torch.cuda.memory_allocated() if device == "cuda" else 0
    built: list[Bench] = []
    yield f"{name}: start", partial(_start, setting, options, built)
    if not built:
        return
    for mode in setting.modes:
        yield f"{name}: {mode}", partial(_steps, built, mode, device, small)
    yield f"{name}: memory", partial(_memory, built, setting.modes[0], device, held_bytes)
    built.clear()  # rows hold the list alone, so that memory is free for the next engine
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _start(setting: _Setting, options: argparse.Namespace, built: list[Bench]) -> Figures:
    if setting.kernels == "liger":
        need_package("liger_kernel")
    began = time.perf_counter()
    changes: dict[str, Any] = options.changes
    built.append(Bench(options, options.sequence_tokens, **changes))
    seconds = time.perf_counter() - began
    return {"weights": float(built[0].engine.num_parameters), "seconds": seconds}


def _steps(built: list[Bench], mode: str, device: str, small: bool) -> Figures:
    (bench,) = built
    number = iter(range(1000))
    step_ms = median_milliseconds(
        lambda: bench.train(mode, next(number)),
        device,
        rounds=1 if small else _TIMED,
        warm_up=1 if small else _WARM_UP,
    )
    recipe, micro_steps = bench.recipes[mode], bench.stream.num_micro_steps
    tokens_per_second = recipe.train.global_batch_tokens / step_ms * 1e3
    utilisation = Utilisation.of(recipe, bench.engine.model, num_gpus=1)
    return {
        "ms": step_ms / micro_steps,
        "tokens_per_second": tokens_per_second,
        **utilisation.at(tokens_per_second),
        **count_launches(lambda: bench.train(mode, next(number)), device, micro_steps=micro_steps),
    }


def _memory(built: list[Bench], mode: str, device: str, held_bytes: int) -> Figures:
    (bench,) = built
    recipe = bench.recipes[mode]
    if device == "cpu":
        if recipe.model.kernels == "liger":
            raise Skipped("the stand-in for Liger keeps more than its kernels do")
        return compare(peaks_on_cpu(recipe), recipe, on_gpu=False)
    bench.engine.memory.take()
    bench.train(mode, 0)
    return compare(peaks_on_gpu(bench, held_bytes=held_bytes), recipe, on_gpu=True)
