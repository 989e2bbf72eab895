"""Kill -9 a run of two ranks, start it again, and compare it with one that was never disturbed.

Usage: python -m tests.training.kill_sweep --points all    at every write, fsync, rename, removal
           and collective of a save, on each rank; or a number of points, spread over all of them
       python -m tests.training.kill_sweep --random 30     one rank or both, at random moments
One line of JSON a trial, and at the end how many ended with the same numbers, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler

from data_prep.build import BuildOptions, build
from data_prep.packing.pack import pack
from tests.distributed import PRELOADED
from tests.training.layouts import tiny_recipe
from training import loop
from training.checkpoint_files import read_state
from training.checkpoint_marker import newest_complete, read_marker
from training.checkpoint_save import CheckpointSave
from training.config import Recipe

RANKS = (0, 1)
FIRST_SAVE, KILLED_SAVE, LAST_STEP = 2, 4, 6
SEQUENCE_TOKENS = 32
_CALLS = {
    os: ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"),
    torch.distributed: ("barrier", "all_gather_object", "broadcast_object_list"),
    deepspeed.comm: ("barrier",),
}
"""What a save does to the disk and to other ranks; `os.write` and `os.pwrite` are also halved."""


@dataclass(frozen=True)
class Point:
    """The moment at which a rank dies: its n-th event within a save."""

    rank: int
    number: int


class EventCounter:
    """Counts events while a save is under way, notes them, and dies at one that was chosen.

    Of a save in the background, those of its thread and of the steps beside it are counted
    together, in the order in which they happen, which differs a little from run to run.

    An event is the moment before a call, which is that after the one before it, the moment in the
    middle of a write, and the end.
    """

    def __init__(self, notes: Path, *, die_at: int | None) -> None:
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._write = os.write
        self._die_at = die_at
        self._count = 0
        self._is_armed = False
        self._lock = threading.Lock()

    def install(self) -> None:
        for module, names in _CALLS.items():
            for name in names:
                setattr(module, name, self._around(getattr(module, name), name))
        os.write = self._halved(os.write, "write")
        os.pwrite = self._halved(os.pwrite, "pwrite")
        begin, publish = CheckpointSave.__init__, CheckpointSave.publish

        def armed_begin(save: CheckpointSave, *arguments: Any, **keywords: Any) -> None:
            self._is_armed = keywords["progress"].step == KILLED_SAVE
            begin(save, *arguments, **keywords)

        def disarming_publish(*arguments: Any, **keywords: Any) -> Path:
            result = publish(*arguments, **keywords)
            self.event("end of the save")
            self._is_armed = False
            return result

        CheckpointSave.__init__ = armed_begin  # type: ignore[method-assign]
        CheckpointSave.publish = disarming_publish  # type: ignore[method-assign]

    def event(self, name: str) -> None:
        if not self._is_armed or threading.current_thread().name not in (
            "MainThread",
            "checkpoint",
        ):
            return
        with self._lock:
            self._count += 1
            self._write(self._notes, f"{name}\n".encode())
            if self._count == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.event(f"before {name} {_target(arguments)}".strip())
            return function(*arguments, **keywords)

        return call

    def _halved(self, function: Callable[..., int], name: str) -> Callable[..., int]:
        def call(descriptor: int, content: Any, *offset: int) -> int:
            if not self._is_armed:
                return function(descriptor, content, *offset)
            target = _target((descriptor,))
            self.event(f"before {name} {target}")
            half = len(content) // 2
            done = function(descriptor, content[:half], *offset)
            self.event(f"half {name} {target}")
            done += function(descriptor, content[half:], *(start + half for start in offset))
            return done

        return call


def _target(arguments: tuple[Any, ...]) -> str:
    """Name of the file or folder that a call is about, if it is about one."""
    match arguments:
        case (int(descriptor), *_):
            return Path(f"/proc/self/fd/{descriptor}").readlink().name
        case (str() | Path() as path, *_):
            return Path(path).name
    return ""


class Driver:
    """Runs trials in ranks that are forked from here, where everything is imported already."""

    def __init__(self, folder: Path, *, in_background: bool) -> None:
        self._folder = folder
        # a run's last save is never in the background
        self._killed_at_last = LAST_STEP if in_background else KILLED_SAVE
        corpus = _build_corpus(folder)
        self._recipe = tiny_recipe(
            run_dir=str(folder / "reference"),
            data={"corpus": str(corpus), "sequence_tokens": SEQUENCE_TOKENS},
            train={
                "global_batch_tokens": 8 * SEQUENCE_TOKENS,
                "epochs": 4,
                "max_steps": LAST_STEP,
                "sequence_parallel_size": 2,
                "micro_batch_samples": 8,
            },
            model__config__vocab_size=300,
            entropy={"source": "cache"},
            evaluation={"every_steps": 2, "max_samples": 6},
            checkpoint={
                "every_steps": FIRST_SAVE,
                "keep_last": 1,
                "in_background": in_background,
            },
        )

    def prepare(self) -> None:
        """The undisturbed run, and the state from which every save that is killed starts."""
        assert self._start(self._recipe) == [0, 0], self.last_words()
        lines = (Path(self._recipe.run_dir) / "metrics.jsonl").read_text().splitlines()
        self._seconds = sum(json.loads(line).get("seconds", 0.0) for line in lines)
        base = self._recipe_in("base", stop_after_steps=FIRST_SAVE)
        assert self._start(base) == [0, 0], self.last_words()

    def points(self) -> list[Point]:
        """Every moment of a save on every rank, found by letting one go through."""
        recipe = self._copy_of_base("traced")
        assert self._start(recipe, noting=True) == [0, 0], self.last_words()
        return [
            Point(rank, number) for rank in RANKS for number in range(1, len(self._noted(rank)) + 1)
        ]

    def kill_at(self, point: Point) -> dict[str, Any]:
        recipe = self._copy_of_base("killed")
        codes = self._start(recipe, noting=True, point=point)
        noted = self._noted(point.rank)
        died = codes[point.rank] == -signal.SIGKILL and len(noted) == point.number
        result = self._go_on(recipe)
        result["exact"] &= result["from_step"] in (FIRST_SAVE, KILLED_SAVE)  # nothing was lost
        event = noted[-1] if noted else None
        return {"rank": point.rank, "event": event, "died": died, **result}

    def kill_at_random(self, rng: random.Random) -> dict[str, Any]:
        """Between the first row of the metrics and about the end: in steps, evaluations, saves."""
        recipe = self._recipe_in("killed")
        codes = [0, 0]
        while codes == [0, 0]:  # where it was faster than the run before, once more
            shutil.rmtree(recipe.run_dir, ignore_errors=True)
            victims = rng.choice([(0,), (1,), RANKS])
            codes = self._start(recipe, kill=(victims, rng.uniform(0.0, 1.3 * self._seconds)))
        died = all(codes[rank] == -signal.SIGKILL for rank in victims)
        step = len(_rows(Path(recipe.run_dir), "step"))
        return {"ranks": victims, "at_step": step, "died": died, **self._go_on(recipe)}

    def last_words(self) -> str:
        return "\n".join((self._folder / f"log-{rank}").read_text()[-2000:] for rank in RANKS)

    def _go_on(self, recipe: Recipe) -> dict[str, Any]:
        """Start once more, to the end, and compare."""
        newest = newest_complete(Path(recipe.run_dir) / "checkpoints", hashes=True)
        from_step = read_marker(newest)["step"] if newest else 0
        finish = replace(recipe, train=replace(recipe.train, stop_after_steps=None))
        codes = self._start(finish)
        run, reference = Path(recipe.run_dir), Path(self._recipe.run_dir)
        differs = [
            what
            for what, of in (
                ("steps", lambda folder: _rows(folder, "step")),
                ("evaluations", lambda folder: _rows(folder, "evaluation")),
                ("checkpoint", _last_checkpoint),
            )
            if codes == [0, 0] and of(run) != of(reference)
        ]
        words = [] if codes == [0, 0] else [self.last_words()]
        return {
            "from_step": from_step,
            "exact": codes == [0, 0] and not differs,
            "differs": differs + words,
        }

    def _recipe_in(self, name: str, *, stop_after_steps: int | None = None) -> Recipe:
        train = replace(self._recipe.train, stop_after_steps=stop_after_steps)
        return replace(self._recipe, run_dir=str(self._folder / name), train=train)

    def _copy_of_base(self, name: str) -> Recipe:
        recipe = self._recipe_in(name, stop_after_steps=self._killed_at_last)
        shutil.rmtree(recipe.run_dir, ignore_errors=True)
        shutil.copytree(self._folder / "base", recipe.run_dir)
        return recipe

    def _noted(self, rank: int) -> list[str]:
        path = self._folder / f"events-{rank}"
        return path.read_text().splitlines() if path.exists() else []

    def _start(
        self,
        recipe: Recipe,
        *,
        noting: bool = False,
        point: Point | None = None,
        kill: tuple[tuple[int, ...], float] | None = None,
    ) -> list[int]:
        """Exit codes of the ranks; -9 for killed. A rank's death ends the others, as a launcher
        does, a moment later."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for path in self._folder.glob("events-*"):
            path.unlink()
        children = {}
        for rank in RANKS:
            child = os.fork()
            if child == 0:
                die_at = point.number if point and point.rank == rank else None
                self._be_rank(rank, port, recipe, noting=noting, die_at=die_at)
            children[child] = rank
        return _wait(children, kill=kill, started=Path(recipe.run_dir) / "metrics.jsonl")

    def _be_rank(
        self, rank: int, port: int, recipe: Recipe, *, noting: bool, die_at: int | None
    ) -> None:
        code = 1
        try:
            log = os.open(self._folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(len(RANKS)))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            random.seed(0)  # Python sows it anew in every fork; it is saved, and compared
            if noting:
                EventCounter(self._folder / f"events-{rank}", die_at=die_at).install()
            loop.train(recipe)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)


def _wait(
    children: dict[int, int], *, kill: tuple[tuple[int, ...], float] | None, started: Path
) -> list[int]:
    codes: dict[int, int] = {}
    began = time.monotonic()
    kill_at = deadline = None
    while len(codes) < len(children):
        now = time.monotonic()
        for child, rank in children.items():
            if rank not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    if codes[rank]:
                        deadline = min(deadline or now + 1, now + 1)
        if kill and kill_at is None and started.exists():
            kill_at = now + kill[1]
        overdue = now - began > 120 or (deadline is not None and now > deadline)
        for child, rank in children.items():
            is_victim = (
                kill is not None and kill_at is not None and now > kill_at and rank in kill[0]
            )
            if rank not in codes and (overdue or is_victim):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[rank] for rank in RANKS]


def _rows(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without what depends on the clock."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    timed = ("seconds", "tokens_per_second")
    return [
        {key: value for key, value in row.items() if key not in timed}
        for row in rows
        if row["kind"] == kind
    ]


def _last_checkpoint(run_dir: Path) -> dict[str, Any]:
    """Weights, optimizer, random states and entropies at the end, by file.

    By content: how pickle shares equal strings depends on where they came from.
    """
    folder = run_dir / "checkpoints" / f"step-{LAST_STEP:08d}"
    return {
        name: _plain(read_state(folder / name)) if name.endswith(".pt") else record["sha256"]
        for name, record in read_marker(folder)["files"].items()
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


def _build_corpus(folder: Path) -> Path:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", help="all, or how many of them, spread evenly")
    parser.add_argument("--random", type=int, default=0, help="how many kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--foreground", action="store_true", help="saves that steps wait for")
    arguments = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as name:
        driver = Driver(Path(name), in_background=not arguments.foreground)
        driver.prepare()
        results = []
        if arguments.points:
            points = driver.points()
            chosen = len(points) if arguments.points == "all" else int(arguments.points)
            print(f"{len(points)} kill points in a save, {chosen} of them tried", flush=True)
            for turn in range(chosen):
                results.append(driver.kill_at(points[turn * len(points) // chosen]))
                print(json.dumps(results[-1]), flush=True)
        rng = random.Random(arguments.seed)
        for _ in range(arguments.random):
            results.append(driver.kill_at_random(rng))
            print(json.dumps(results[-1]), flush=True)
    num_exact = sum(result["exact"] and result["died"] for result in results)
    print(f"{num_exact} of {len(results)} kill points resumed exactly")
    return 0 if num_exact == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
