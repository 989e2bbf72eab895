"""The memory that real training steps take: bytes of live tensors, on processes over gloo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step_workload import RandomPack
from launch.planner.models import find_architecture
from tests.distributed import run_ranks
from tests.training.layouts import make_regulariser, whole_epochs
from training.config.layout import batch_shape
from training.config.recipe import Recipe
from training.data.stream import SampleStream
from training.model.causal_lm import resolve_model_config
from training.model.ds_config import training_dtype
from training.model.engine import build_engine
from training.model.shadow import AveragedWeights
from training.ranks.dist import init_layout
from training.ranks.watchdog import Watchdog
from training.regularisers.table import model_regularisation
from training.run.step import train_step
from training.run.teacher import make_teacher

# ZeRO-3 records the order of the modules in a first pass, and gathers ahead by it from then on.
_WARM_UP_STEPS, _STEPS = 1, 1
_LET_GO_SECONDS = 0.003


class LiveBytes(TorchDispatchMode):
    """Follows the memory behind every tensor that an operator returns, until nobody holds it.

    torch's memory profiler would see what operators need inside, too, but misses what gloo's
    threads free; the size of the process also has what malloc keeps and what Python takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}
        self.phase = "load"
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._add(tensor.untyped_storage())
        peak = self.peaks.get(self.phase, 0)
        if self._num_bytes > peak:  # so far with what has been freed, which takes long to look up
            self._drop_freed()
            if self._num_bytes > peak:  # gloo's threads let go a moment after they were waited for
                time.sleep(_LET_GO_SECONDS)
                self._drop_freed()
            self.peaks[self.phase] = max(peak, self._num_bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        reference = StorageWeakRef(storage)
        if reference.cdata not in self._live:
            self._live[reference.cdata] = reference, storage.nbytes()
            self._num_bytes += storage.nbytes()

    def _drop_freed(self) -> None:
        for key in [key for key, (reference, _) in self._live.items() if reference.expired()]:
            self._num_bytes -= self._live.pop(key)[1]


class _PhaseMarks(Watchdog):
    """Hears of the phases that the engine tells its watchdog."""

    def __init__(self, live: LiveBytes) -> None:
        super().__init__(Path(), rank=0, seconds=None, slow_seconds=1.0)
        self.live, self.prefix = live, ""

    def enter(self, name: str, **_: Any) -> None:
        self.live.phase = self.prefix + name


def measure_peaks(recipe: Recipe, *, world_size: int) -> dict[str, int]:
    """Peak bytes of live tensors on rank 0 by phase: load, forward, backward, update and others."""
    peaks: dict[str, int] = run_ranks(peaks_of_steps, recipe, world_size=world_size)[0]
    return peaks


def peaks_of_steps(recipe: Recipe) -> dict[str, int]:
    """On one rank: the same of it."""
    layout = init_layout(sp_size=recipe.train.sequence_parallel_size)
    vocab_size = find_architecture(recipe).vocab
    pack: Any = RandomPack(recipe.data.sequence_tokens, vocab_size, one_document=True)
    samples_per_step, num_micro_steps = batch_shape(
        global_batch_tokens=recipe.train.global_batch_tokens,
        sequence_tokens=pack.seq_len,
        micro_batch_samples=recipe.train.micro_batch_samples,
        dp_size=layout.dp_size,
    )
    stream = SampleStream(
        pack=pack,
        split="train",
        layout=layout,
        total_samples=100 * samples_per_step,
        samples_per_step=samples_per_step,
        micro_batch_samples=recipe.train.micro_batch_samples,
        order=whole_epochs(pack.num, seed=recipe.seed),
    )
    with LiveBytes() as live:
        marks = _PhaseMarks(live)
        dtype = training_dtype(recipe.deepspeed)
        config = resolve_model_config(recipe.model, vocab_size=vocab_size, dtype=dtype)
        engine = build_engine(
            recipe,
            config,
            layout=layout,
            num_micro_steps=num_micro_steps,
            regularisation=model_regularisation(recipe),
            watchdog=marks,
        )
        regulariser = make_regulariser(recipe, engine, pack)
        average = None if recipe.ema is None else AveragedWeights(engine, decay=0.5)
        teacher = make_teacher(recipe, engine, average, pack=pack, num_domain_samples=pack.num)
        for step in range(_WARM_UP_STEPS + _STEPS):
            marks.prefix = "warm-up " if step < _WARM_UP_STEPS else ""
            train_step(
                engine,
                stream,
                regulariser,
                step=step,
                trained_frac=0.5,
                lr=1e-3,
                teacher=teacher,
            )
            if average:
                average.update()
    return live.peaks
