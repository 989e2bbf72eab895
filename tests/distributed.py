"""Run a test's function on several real processes over gloo, and give back what each returns."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, spawn
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from tests.warm_python import warm_python

# a clean process that has imported the heavy packages once and forks each rank from itself
PRELOADED = [
    "torch",
    "transformers",
    "deepspeed",
    "training.model.engine",
    "training.run.run",
    # what these import at the first start of an engine: half of its seconds
    "deepspeed.runtime.zero.muon.original_muon",
    "deepspeed.runtime.sequence_parallel.ulysses_sp",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.module_inject.auto_ep_layer",
    "torch.utils.tensorboard",
    "transformers.models.qwen3.modeling_qwen3",
]


def run_ranks(
    function: Callable[..., Any],
    *args: Any,
    world_size: int,
    timeout_seconds: float = 240,
    gpus: bool = False,
) -> list[Any]:
    """Call `function(*args)` on `world_size` processes with the environment of torchrun.

    On CPUs, with the machine's GPUs hidden, unless `gpus`, for tests marked so.

    Args:
        function: at the top level of a module, so that other processes can import it.
        args: picklable.

    Returns:
        What each rank returned, by rank.

    Raises:
        AssertionError: with the traceback of every rank that failed, or the ranks that hang.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    if gpus:
        # what a server has loaded has made up its mind about the accelerator
        context: Any = multiprocessing.get_context("spawn")
    else:
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, "tests.frozen"])
        _start_forkserver()
    # Held by this process until the ranks have ended: a port that was free a moment ago may not be.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [Path(folder) / f"rank{rank}.pickle" for rank in range(world_size)]
        processes = [
            context.Process(
                target=_rank_main, args=(function, args, rank, world_size, store.port, path)
            )
            for rank, path in enumerate(outcomes)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, timeout_seconds)
        finally:
            hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
            for process in processes:
                process.kill()
                process.join()
        results = [_outcome(path) for path in outcomes]
        failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(results) if not ok]
        assert not failures, f"hanging ranks: {hanging}\n" + "\n".join(failures)
        return [value for _, value in results]


def _start_forkserver() -> None:
    """From a process that has loaded most of it, where a test session has one."""
    plain = spawn.get_executable()
    multiprocessing.set_executable(warm_python())
    try:
        forkserver.ensure_running()
    finally:
        multiprocessing.set_executable(plain)


def ranks_folder() -> Path:
    """In a rank: a folder that all ranks of the call share, and that ends with it."""
    return Path(tempfile.gettempdir())


def _wait(processes: list[Any], timeout_seconds: float) -> None:
    """Until all have ended; a failed rank gives the others a short while to fail as well."""
    deadline = time.monotonic() + timeout_seconds
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode not in (None, 0) for process in processes):
            deadline = min(deadline, time.monotonic() + 15)
        time.sleep(0.02)


def _rank_main(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    port: int,
    outcome: Path,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # as under torchrun: rank 0 starts none of its own
    )
    # what the ranks leave in temporary folders goes with the call
    os.environ["TMPDIR"] = tempfile.tempdir = str(outcome.parent)
    import torch

    torch.set_num_threads(1)
    try:
        result: tuple[bool, Any] = (True, function(*args))
    except BaseException:
        result = (False, traceback.format_exc())
    partial = outcome.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(result))
    partial.rename(outcome)
    # no farewell: a rank that failed must not wait for the others
    os._exit(0 if result[0] else 1)


def _outcome(path: Path) -> tuple[bool, Any]:
    if not path.exists():
        return False, "ended without a result (hung, or was killed)"
    return pickle.loads(path.read_bytes())
