"""Runs work in forks of a process with all modules loaded: a start takes 1 s instead of 10."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

_PRELOADED = (
    "benchmarks.study.base",
    "benchmarks.study.runs",
    # what these import at the first start of an engine
    "deepspeed.runtime.zero.muon.original_muon",
    "torch.utils.tensorboard",
    "transformers.models.qwen3.modeling_qwen3",
)
_TO_ASK = ("lm_eval.evaluator", "training.tasks.evaluation", "training.tasks.whole_model")
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30


def load_modules(*, asks: bool) -> None:
    """Before the first fork. The process itself never trains: a process group does not fork.

    Args:
        asks: whether runs ask questions, too.
    """
    os.environ.update(
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        DS_ACCELERATOR="cpu",
        TOKENIZERS_PARALLELISM="false",
        WORLD_SIZE="1",
    )
    for name in _PRELOADED + (_TO_ASK if asks else ()):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)  # it may have been imported before
    # glibc returns each large tensor to the system, which then clears its pages for the next one
    for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        ctypes.CDLL(None).mallopt(parameter, _KEPT_BYTES)
    gc.freeze()  # or every fork's collector would walk, and so copy, all of it


def fork(work: Callable[[], None], *, log: Path) -> int:
    """Start `work` in another process, which dies with this one; what it prints goes to `log`.

    Returns:
        Its process id, to wait for.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def run_in_fork(work: Callable[[], None], *, log: Path, what: str) -> None:
    """Start it and wait.

    Raises:
        ValueError: when it fails, with its last words.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    child = fork(work, log=log)
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    refuse_failure(status, log=log, what=what)


def refuse_failure(status: int, *, log: Path, what: str) -> None:
    """The status is that of `os.waitpid`."""
    if os.waitstatus_to_exitcode(status):
        raise ValueError(f"{what} failed:\n{log.read_text(errors='replace')[-1500:]}")
