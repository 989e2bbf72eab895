"""Training runs of two ranks, forked from a process that has imported everything, to be killed."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from tests.distributed import PRELOADED
from training.checkpoints.files import read_state
from training.checkpoints.manifest import read_manifest
from training.config.recipe import Recipe
from training.run import run as run_module

RANKS = (0, 1)
SEQUENCE_TOKENS = 32


@dataclass(frozen=True)
class Disturbance:
    """What a run meets from outside."""

    ranks: tuple[int, ...]
    after_seconds: float
    signal: int = signal.SIGKILL
    since: Path | None = None
    """Counted from when this file exists, or from the start."""


class ForkedRanks:
    """Starts runs; a rank begins with all modules loaded, so a start takes about a second."""

    def __init__(self, folder: Path) -> None:
        """Keep the ranks' output in `folder`."""
        self._folder = folder
        for name in (*PRELOADED, "tests.frozen"):
            importlib.import_module(name)

    def start(
        self,
        recipe: Recipe,
        *,
        disturbance: Disturbance | None = None,
        prepare: Callable[[int], None] = lambda rank: None,
        timeout_seconds: float = 120,
    ) -> list[int]:
        """Exit codes of the ranks; -9 for killed.

        A rank's death ends the others, as a launcher does, a moment later.

        Args:
            prepare: called in each rank before it trains.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = {}
        for rank in RANKS:
            child = os.fork()
            if child == 0:
                self._be_rank(rank, port, recipe, prepare)
            children[child] = rank
        return _wait(children, disturbance, timeout_seconds)

    def last_words(self) -> str:
        """The end of what each rank printed."""
        return "\n".join((self._folder / f"log-{rank}").read_text()[-2000:] for rank in RANKS)

    def _be_rank(
        self, rank: int, port: int, recipe: Recipe, prepare: Callable[[int], None]
    ) -> None:
        code = 1
        try:
            log = os.open(self._folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(len(RANKS)))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            random.seed(0)  # Python sows it anew in every fork; it is saved, and compared
            prepare(rank)
            run_module.train(recipe)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)


def _wait(
    children: dict[int, int], disturbance: Disturbance | None, timeout_seconds: float
) -> list[int]:
    codes: dict[int, int] = {}
    began = time.monotonic()
    since = disturbance.since if disturbance else None
    disturb_at = deadline = None
    while len(codes) < len(children):
        now = time.monotonic()
        for child, rank in children.items():
            if rank not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    if codes[rank]:
                        deadline = min(deadline or now + 1, now + 1)
        if disturbance and disturb_at is None and (since is None or since.exists()):
            disturb_at = now + disturbance.after_seconds
        is_due = disturb_at is not None and now > disturb_at
        is_overdue = now - began > timeout_seconds or (deadline is not None and now > deadline)
        for child, rank in children.items():
            if rank in codes:
                continue
            if is_overdue:
                os.kill(child, signal.SIGKILL)
            elif disturbance and is_due and rank in disturbance.ranks:
                os.kill(child, disturbance.signal)
        if is_due:
            disturbance = None
        time.sleep(0.005)
    return [codes[rank] for rank in RANKS]


def timeless_rows(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without what depends on the clock."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    timed = ("seconds", "tokens_per_second", "model_tflops", "hardware_tflops")
    return [
        {key: value for key, value in row.items() if key not in timed}
        for row in rows
        if row["kind"] == kind
    ]


def checkpoint_content(folder: Path) -> dict[str, Any]:
    """Weights, optimizer, random states and entropies of a checkpoint, by file.

    By content: how pickle shares equal strings depends on where they came from.
    """
    return {
        name: _plain(read_state(folder / name)) if name.endswith(".pt") else record["sha256"]
        for name, record in read_manifest(folder)["files"].items()
    }


def _plain(state: Any) -> Any:
    """The same with tensors as bytes, so that == compares bits."""
    if isinstance(state, torch.Tensor):
        return str(state.dtype), tuple(state.shape), state.detach().numpy().tobytes()
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_plain(value) for value in state]
    return _plain(vars(state)) if isinstance(state, LossScaler) else state


def build_corpus(folder: Path) -> Path:
    package = Path(json.__file__).parent
    texts = [
        text for path in sorted(package.glob("*.py")) for text in path.read_text().split("\n\n")
    ]
    inputs = folder / "texts.jsonl"
    inputs.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:120]))
    options = {"train_tokenizer": "bpe", "train_vocab_size": 300, "val_frac": 0.3, "num_workers": 1}
    build(BuildOptions(inputs=(inputs,), out=folder / "corpus", **options))
    pack(folder / "corpus", seq_len=SEQUENCE_TOKENS)
    return folder / "corpus"
