"""Kill -9 a run of two ranks, start it again, and compare it with one that was never disturbed.

Usage: python -m tests.training.kill_sweep --points all    at every write, fsync, rename, removal
           and collective of a save, on each rank; or a number of points, spread over all of them
       python -m tests.training.kill_sweep --random 30     one rank or both, at random moments
One line of JSON a trial, and at the end how many ended with the same numbers, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")

import deepspeed
import torch

from tests.training.forked_runs import (
    RANKS,
    SEQUENCE_TOKENS,
    Disturbance,
    ForkedRanks,
    build_corpus,
    checkpoint_content,
    timeless_rows,
)
from tests.training.layouts import tiny_recipe
from training.checkpoints.manifest import newest_complete, read_manifest
from training.checkpoints.save import CheckpointSave
from training.config.recipe import Recipe

FIRST_SAVE, KILLED_SAVE, LAST_STEP = 2, 4, 6
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
    """Runs trials and compares each with the run that nothing disturbed."""

    def __init__(self, folder: Path, *, in_background: bool) -> None:
        self._folder, self._ranks = folder, ForkedRanks(folder)
        # a run's last save is never in the background
        self._killed_at_last = LAST_STEP if in_background else KILLED_SAVE
        corpus = build_corpus(folder)
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
        assert self._ranks.start(self._recipe) == [0, 0], self._ranks.last_words()
        lines = (Path(self._recipe.run_dir) / "metrics.jsonl").read_text().splitlines()
        self._seconds = sum(json.loads(line).get("seconds", 0.0) for line in lines)
        base = self._recipe_in("base", stop_after_steps=FIRST_SAVE)
        assert self._ranks.start(base) == [0, 0], self._ranks.last_words()

    def points(self) -> list[Point]:
        """Every moment of a save on every rank, found by letting one go through."""
        recipe = self._copy_of_base("traced")
        assert self._start_noting(recipe) == [0, 0], self._ranks.last_words()
        return [
            Point(rank, number) for rank in RANKS for number in range(1, len(self._noted(rank)) + 1)
        ]

    def kill_at(self, point: Point) -> dict[str, Any]:
        recipe = self._copy_of_base("killed")
        codes = self._start_noting(recipe, point)
        noted = self._noted(point.rank)
        if codes == [0, 0]:  # this save had fewer events than the one that was traced
            assert 0 < len(noted) < point.number
            return self.kill_at(Point(point.rank, len(noted)))
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
            kill = Disturbance(
                victims,
                after_seconds=rng.uniform(0.0, 1.3 * self._seconds),
                since=Path(recipe.run_dir) / "metrics.jsonl",
            )
            codes = self._ranks.start(recipe, disturbance=kill)
        died = all(codes[rank] == -signal.SIGKILL for rank in victims)
        step = len(timeless_rows(Path(recipe.run_dir), "step"))
        return {"ranks": victims, "at_step": step, "died": died, **self._go_on(recipe)}

    def _go_on(self, recipe: Recipe) -> dict[str, Any]:
        """Start once more, to the end, and compare."""
        newest = newest_complete(Path(recipe.run_dir) / "checkpoints", hashes=True)
        from_step = read_manifest(newest)["step"] if newest else 0
        finish = replace(recipe, train=replace(recipe.train, stop_after_steps=None))
        codes = self._ranks.start(finish)
        run, reference = Path(recipe.run_dir), Path(self._recipe.run_dir)
        differs = [
            what
            for what, of in (
                ("steps", lambda folder: timeless_rows(folder, "step")),
                ("evaluations", lambda folder: timeless_rows(folder, "evaluation")),
                ("checkpoint", _last_content),
            )
            if codes == [0, 0] and of(run) != of(reference)
        ]
        words = [] if codes == [0, 0] else [self._ranks.last_words()]
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

    def _start_noting(self, recipe: Recipe, point: Point | None = None) -> list[int]:
        for path in self._folder.glob("events-*"):
            path.unlink()

        def prepare(rank: int) -> None:
            die_at = point.number if point and point.rank == rank else None
            EventCounter(self._folder / f"events-{rank}", die_at=die_at).install()

        return self._ranks.start(recipe, prepare=prepare)


def _last_content(run_dir: Path) -> dict[str, Any]:
    return checkpoint_content(run_dir / "checkpoints" / f"step-{LAST_STEP:08d}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", help="all, or how many of them, spread evenly")
    parser.add_argument("--random", type=int, default=0, help="how many kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--foreground", action="store_true", help="saves that steps wait for")
    arguments = parser.parse_args()
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
