"""This process's place among the ranks, and the few reductions the loop needs."""

from __future__ import annotations

import os
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from training.ranks.launcher_env import set_rank_variables, whole_number
from training.ranks.lost_gpus import refuse_lost_gpus

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """This process's place among all: data-parallel groups of `sp_size` neighbouring ranks."""

    rank: int
    world_size: int
    sp_size: int
    device: torch.device

    @property
    def sp_rank(self) -> int:
        """Which shard of the sequence is ours."""
        return self.rank % self.sp_size

    @property
    def dp_rank(self) -> int:
        """Which samples are ours, together with the ranks that share our sequences."""
        return self.rank // self.sp_size

    @property
    def dp_size(self) -> int:
        return self.world_size // self.sp_size

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init_layout(*, sp_size: int, timeout_seconds: float | None = None) -> Layout:
    """Join the process group that the launcher describes, or start one of a single process.

    Args:
        timeout_seconds: longest wait of a rank for the others; None leaves it to torch, which takes
            ten minutes on GPUs.

    Raises:
        ValueError: when the number of processes is not a multiple of `sp_size`, several cannot
            know their ranks, or a GPU of the machine cannot be used.
    """
    set_rank_variables()
    if "RANK" not in os.environ:  # what else a shell holds is of another job
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = "0"  # any free one
    world_size, local_rank = whole_number("WORLD_SIZE"), whole_number("LOCAL_RANK")
    if world_size % sp_size:
        raise ValueError(
            f"train.sequence_parallel_size {sp_size} does not divide the number of processes "
            f"{world_size}; launch a multiple of {sp_size}, or set it to one of "
            f"{[n for n in range(1, world_size + 1) if world_size % n == 0]}"
        )
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        refuse_lost_gpus()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # or DeepSpeed starts numactl in every micro-step, to count places for processes
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    elif local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK is {local_rank}, but this process sees {torch.cuda.device_count()} GPUs: "
            "start at most one process for each GPU of a machine, and let each see all of them"
        )
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _start_deepspeed(has_gpu=has_gpu, timeout_seconds=timeout_seconds)
        # A rank that refuses the recipe at once must not exit before the others have met it: they
        # would report a broken connection instead of the mistake.
        dist.barrier()
    return Layout(dist.get_rank(), world_size, sp_size, device)


def sum_over_ranks(values: Tensor) -> list[Any]:
    """Element-wise sum of a small tensor over all ranks, or of this one alone, as numbers."""
    if dist.is_initialized():
        dist.all_reduce(values)
    total: list[Any] = values.tolist()
    return total


def mean_of(total: float, count: float) -> float | None:
    """None for no values at all: a mean of 0 would pass for a measurement."""
    return total / count if count else None


def broadcast_from_rank0(value: T) -> T:
    """Rank 0's value, on every rank. For decisions at the start, not in a step."""
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    agreed: T = box[0]
    return agreed


def raise_together(error: str | None) -> None:
    """Raise on every rank when any rank met an error, so that none waits for another.

    Raises:
        ValueError: with the message of the lowest rank that has one.
    """
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    first = next((message for message in errors if message), None)
    if first:
        raise ValueError(first)


def together(work: Callable[[], T]) -> T:
    """Do it on every rank; an error of one, of whatever kind, is raised on all.

    Raises:
        ValueError: with the message of the lowest rank that has one.
    """
    result: list[T] = []
    caught: Exception | None = None
    try:
        result.append(work())
    except Exception as error:  # the other ranks would wait for this one
        caught = error
        if not isinstance(error, (ValueError, OSError)):
            traceback.print_exc()  # nobody's mistake but ours, or a library's
    try:
        raise_together(None if caught is None else _told(caught))
    except ValueError as error:
        raise error from caught
    return result[0]


def together_slowly(work: Callable[[], T], layout: Layout) -> T:
    """`together` for what may take hours: the ranks ask once a second whether all are done.

    In one collective none could wait longer than its timeout of ten minutes.
    """
    result: list[T] = []
    caught: list[Exception] = []

    def note() -> None:
        try:
            result.append(work())
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    num_working = torch.ones(1, device=layout.device)
    while num_working.item():
        thread.join(timeout=1)
        num_working.fill_(float(thread.is_alive()))
        dist.all_reduce(num_working)

    def give() -> T:
        if caught:
            raise caught[0]
        return result[0]

    return together(give)


def _told(error: Exception) -> str:
    text = str(error)
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def _start_deepspeed(*, has_gpu: bool, timeout_seconds: float | None) -> None:
    # raised by every DeepSpeed collective, about names it has not changed yet
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed  # after DS_ACCELERATOR is set

    if not has_gpu:
        # Its operator for shared memory is used in inference only, and would be compiled here.
        # Looking up what else is compatible would compile test programs, on every rank and start.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    timeout = {} if timeout_seconds is None else {"timeout": timedelta(seconds=timeout_seconds)}
    backend = "nccl" if has_gpu else "gloo"
    deepspeed.init_distributed(dist_backend=backend, verbose=False, **timeout)
