"""Disturb one long run of two ranks again and again, and compare it with one left alone.

Usage: python -m tests.training.soak --minutes 20

It is killed, signalled, or finds a bit of its newest checkpoint flipped, at random moments of its
starts, steps, evaluations and saves, and started again each time. At the end every step, every
evaluation and the last checkpoint must be those of a run of as many steps without a disturbance,
bit for bit. One line of JSON a start.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

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

EVALUATE_EVERY_STEPS = 150
KINDS = {"kill one": 4, "kill both": 3, "SIGTERM": 1, "SIGUSR1": 1, "flip a bit": 1}
"""How often each comes, by weight."""


class Soak:
    """One run and what has happened to it."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._ranks, self._rng = ForkedRanks(folder), random.Random(seed)
        self.recipe = tiny_recipe(
            run_dir=str(folder / "soaked"),
            data={"corpus": str(build_corpus(folder)), "sequence_tokens": SEQUENCE_TOKENS},
            train={
                "global_batch_tokens": 8 * SEQUENCE_TOKENS,
                "epochs": 1_000_000,
                "max_steps": 1_000_000,
                "sequence_parallel_size": 2,
                "micro_batch_samples": 8,
            },
            schedule={"kind": "constant"},
            model__config__vocab_size=300,
            entropy={"source": "cache"},
            evaluation={"every_steps": EVALUATE_EVERY_STEPS, "max_samples": 6},
            checkpoint={"every_steps": 50, "keep_last": 3},
        )
        self.run_dir = Path(self.recipe.run_dir)

    def disturb(self, *, mean_seconds: float) -> dict[str, Any]:
        """Go on until a disturbance ends the run.

        Raises:
            AssertionError: when it ends without one, or a checkpoint that was whole is gone.
        """
        kind = self._rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        ranks = RANKS if kind in ("kill both", "flip a bit") else (self._rng.choice(RANKS),)
        number = getattr(signal, kind, signal.SIGKILL)
        after = self._rng.uniform(0.5, 2 * mean_seconds)
        before, began = self._newest_step(), time.monotonic()
        codes = self._ranks.start(
            self.recipe,
            disturbance=Disturbance(ranks, after_seconds=after, signal=number),
            timeout_seconds=after + 60,
        )
        seconds = time.monotonic() - began
        assert seconds > after, f"ended by itself: {codes}\n{self._ranks.last_words()}"
        saved, trained = self._newest_step(), len(timeless_rows(self.run_dir, "step"))
        assert saved >= before, f"a checkpoint is lost: step {before}, now {saved}"
        if kind == "flip a bit" and len(self._checkpoints()) > 1:
            self._flip_a_bit()
            assert self._newest_step() < saved, "the flipped bit was not seen"
            saved = self._newest_step()
        return {
            "disturbance": kind,
            "ranks": ranks,
            "seconds": round(seconds, 2),
            "codes": codes,
            "trained_to": trained,
            "goes_on_from": saved,
        }

    def end(self) -> int:
        """Let the run stop by itself; the step that it came to."""
        (self.run_dir / "STOP").touch()
        codes = self._ranks.start(self.recipe)
        assert codes == [0, 0], self._ranks.last_words()
        return json.loads((self.run_dir / "run_state.json").read_text())["step"]

    def undisturbed(self, num_steps: int) -> Path:
        """Folder of a run of as many steps that nothing happens to."""
        run_dir = self.run_dir.with_name("undisturbed")
        train = replace(self.recipe.train, stop_after_steps=num_steps)
        recipe = replace(self.recipe, run_dir=str(run_dir), train=train)
        codes = self._ranks.start(recipe, timeout_seconds=7200)
        assert codes == [0, 0], self._ranks.last_words()
        return run_dir

    def _checkpoints(self) -> list[Path]:
        return sorted((self.run_dir / "checkpoints").glob("step-*"))

    def _newest_step(self) -> int:
        """Of the newest checkpoint that is whole to the last bit; 0 before the first."""
        newest = newest_complete(self.run_dir / "checkpoints", hashes=True)
        return read_manifest(newest)["step"] if newest else 0

    def _flip_a_bit(self) -> None:
        newest = self._checkpoints()[-1]
        path = self._rng.choice([newest / name for name in read_manifest(newest)["files"]])
        content = bytearray(path.read_bytes())
        content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
        path.write_bytes(content)


def differences(soaked: Path, undisturbed: Path) -> list[str]:
    """What is not the same, bit for bit, in two runs that ended at the same step."""
    last = sorted((undisturbed / "checkpoints").glob("step-*"))[-1].name
    both = (soaked, undisturbed)
    compared = {
        "steps": [timeless_rows(run, "step") for run in both],
        "epochs": [timeless_rows(run, "epoch") for run in both],
        "evaluations": [_due_evaluations(run) for run in both],
        "checkpoint": [checkpoint_content(run / "checkpoints" / last) for run in both],
    }
    assert all(theirs for _, theirs in compared.values())
    return [what for what, (ours, theirs) in compared.items() if ours != theirs]


def _due_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Without that of a step at which `stop_after_steps` ended the run, and a STOP file did not."""
    rows = timeless_rows(run_dir, "evaluation")
    return [row for row in rows if row["step"] % EVALUATE_EVERY_STEPS == 0]


def memory_gib(run_dir: Path) -> tuple[float, float]:
    """Greatest resident set of a rank: in the first report of a run and in the last."""
    rows = timeless_rows(run_dir, "ranks")
    return rows[0]["peak_memory_gib"], rows[-1]["peak_memory_gib"]


def left_over(run_dir: Path) -> list[str]:
    """Files that an end should have removed."""
    patterns = ("checkpoints/.*", "**/*.partial", "**/*.tmp", "STOP", "hang-*")
    return [str(path) for pattern in patterns for path in run_dir.glob(pattern)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--mean-seconds", type=float, default=10, help="of a start's life")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        soak = Soak(Path(name), seed=arguments.seed)
        began, starts = time.monotonic(), []
        while time.monotonic() - began < 60 * arguments.minutes:
            starts.append(soak.disturb(mean_seconds=arguments.mean_seconds))
            print(json.dumps(starts[-1]), flush=True)
        num_steps = soak.end()
        seconds = time.monotonic() - began
        undisturbed = soak.undisturbed(num_steps)
        differs = differences(soak.run_dir, undisturbed)
        size = sum(path.stat().st_size for path in soak.run_dir.rglob("*") if path.is_file())
        result = {
            "minutes": round(seconds / 60, 1),
            "disturbances": {
                kind: sum(start["disturbance"] == kind for start in starts) for kind in KINDS
            },
            "steps": num_steps,
            "steps_done_again": sum(
                start["trained_to"] - start["goes_on_from"] for start in starts
            ),
            "memory_gib_first_and_last_start": memory_gib(soak.run_dir),
            "memory_gib_undisturbed": memory_gib(undisturbed),
            "run_folder_mb": round(size / 1e6, 1),
            "left_over": left_over(soak.run_dir),
            "differs": differs,
        }
        print(json.dumps(result, indent=1))
    return 1 if differs or result["left_over"] else 0


if __name__ == "__main__":
    sys.exit(main())
