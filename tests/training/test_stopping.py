"""Runs that are asked to stop save on all ranks, say why, and go on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_ranks
from tests.processes import processes_with
from tests.training.short_runs import NUM_STEPS, metrics, short_recipe, train_on_rank
from tests.warm_python import warm_python
from training.config.load import dump_recipe
from training.config.recipe import Recipe
from training.ranks.dist import Layout
from training.ranks.run_state import read_run_state
from training.ranks.stopping import STOP_FILE, StopRequests

ROOT = Path(__file__).parents[2]


def train_and_ask(recipe: Recipe, ask: str, asked_rank: int, behind: int) -> dict[str, Any]:
    """Train; one rank is asked to stop behind a micro-step, counted from 1."""
    import training.run.run
    from training.checkpoints.save import CheckpointSave
    from training.model.engine import Engine

    num_backwards, saved = 0, []
    backward, save = Engine.backward_and_step, CheckpointSave.publish

    def backward_and_ask(engine: Engine, *args: Any, **options: Any) -> float | None:
        nonlocal num_backwards
        done = backward(engine, *args, **options)
        num_backwards += 1
        if engine.layout.rank == asked_rank and num_backwards == behind:
            if ask == STOP_FILE:
                (Path(recipe.run_dir) / STOP_FILE).touch()
            else:
                os.kill(os.getpid(), signal.Signals[ask])
        return done

    def save_and_note(under_way: CheckpointSave, *args: Any) -> Path:
        saved.append(under_way.progress.step)
        return save(under_way, *args)

    Engine.backward_and_step = backward_and_ask  # type: ignore[method-assign]
    CheckpointSave.publish = save_and_note  # type: ignore[method-assign]
    handlers = [signal.getsignal(number) for number in signal_numbers()]
    training.run.run.train(recipe)
    restored = [signal.getsignal(number) for number in signal_numbers()] == handlers
    return {"saved": saved, "restored": restored, "num_backwards": num_backwards}


def test_a_resume_that_is_to_stop_before_where_it_is_has_stopped(small_corpus, tmp_path):
    """Not one that runs, or was killed (Lightning issue 1922, prime-rl 3352)."""
    alone = {"train__sequence_parallel_size": 1, "evaluation__every_steps": None}
    for stop in (2, 1):
        recipe = short_recipe(small_corpus, tmp_path / "run", train__stop_after_steps=stop, **alone)
        run_ranks(train_on_rank, recipe, world_size=1)
    state = read_run_state(tmp_path / "run")
    assert (state.state, state.step) == ("stopped", 2)
    assert (state.reason, state.num_starts) == ("train.stop_after_steps", 2)


def signal_numbers() -> tuple[signal.Signals, ...]:
    return signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


@pytest.mark.parametrize(
    ("ask", "rank", "in_step", "reason"),
    [
        ("SIGTERM", 1, 4, "SIGTERM"),
        ("SIGUSR1", 0, 6, "SIGUSR1"),  # in a step that an evaluation follows
        ("SIGINT", 1, 1, "SIGINT"),
        (STOP_FILE, 1, 5, "STOP file"),
    ],
)
def test_what_asks_one_rank_stops_all_after_the_same_step_and_nothing_is_lost(
    finished, small_corpus, tmp_path, ask, rank, in_step, reason
):
    run_dir = tmp_path / "run"
    recipe = short_recipe(small_corpus, run_dir)
    ended = run_ranks(train_and_ask, recipe, ask, rank, in_step, world_size=2)
    finished_the_step = {"saved": [in_step], "restored": True, "num_backwards": in_step}
    assert ended == [finished_the_step, finished_the_step]
    state = read_run_state(run_dir)
    assert (state.state, state.reason, state.step) == ("stopped", reason, in_step)
    assert not (run_dir / STOP_FILE).exists()

    run_ranks(train_on_rank, recipe, world_size=2)
    assert metrics(run_dir, "step") == metrics(finished, "step")
    assert metrics(run_dir, "evaluation") == metrics(finished, "evaluation")
    after = read_run_state(run_dir)
    assert (after.state, after.step, after.num_starts) == ("complete", NUM_STEPS, 2)
    assert after.run_id == state.run_id


def test_a_request_in_the_last_step_leaves_a_complete_run(small_corpus, tmp_path):
    """Between the two micro-steps of that step, which is done to its end."""
    changes = {"train__max_steps": 2, "train__micro_batch_samples": 4}
    recipe = short_recipe(small_corpus, tmp_path / "run", **changes)
    (ended, _) = run_ranks(train_and_ask, recipe, "SIGTERM", 0, 3, world_size=2)
    assert (ended["saved"], ended["num_backwards"]) == ([2], 4)
    assert read_run_state(tmp_path / "run").state == "complete"


def test_sigterm_to_one_process_under_torchrun_loses_nothing(small_corpus, tmp_path):
    """The real command, with an order from outside at a moment that nobody chose."""
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    changes = {
        "train__max_steps": 30,
        "train__micro_batch_samples": 8,
        "evaluation__every_steps": None,
        "regulariser": "none",
    }
    run_ranks(train_on_rank, short_recipe(small_corpus, whole, **changes), world_size=2)
    recipe = short_recipe(small_corpus, run_dir, **changes)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(dump_recipe(recipe), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    errors = tmp_path / "stderr.txt"
    with errors.open("w", encoding="utf-8") as file:
        torchrun = subprocess.Popen(
            [warm_python(), *launcher, "-m", "training", "train", str(recipe_file)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stderr=file,
        )
    try:
        while not ((run_dir / "metrics.jsonl").exists() and metrics(run_dir, "step")):
            assert torchrun.poll() is None, errors.read_text()
            time.sleep(0.01)
        (process,) = (pid for pid in processes_with(str(recipe_file)) if rank_of(pid) == "1")
        os.kill(process, signal.SIGTERM)
        torchrun.wait(timeout=60)
    finally:
        torchrun.kill()
    assert torchrun.returncode == 0, errors.read_text()
    assert "rank 1 got SIGTERM: the run saves after this step" in errors.read_text()
    state = read_run_state(run_dir)
    assert (state.state, state.reason) == ("stopped", "SIGTERM")
    assert 1 <= state.step < 30
    assert [row["step"] for row in metrics(run_dir, "step")] == list(range(1, state.step + 1))
    run_ranks(train_on_rank, recipe, world_size=2)
    assert metrics(run_dir, "step") == metrics(whole, "step")


def rank_of(process: int) -> str | None:
    variables = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return next((text[5:] for text in variables if text.startswith("RANK=")), None)


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[StopRequests]:
    layout = Layout(rank=0, world_size=1, sp_size=1, device=torch.device("cpu"))
    with StopRequests(tmp_path, layout) as opened:
        yield opened


def test_a_second_ctrl_c_ends_the_process_at_once(requests, monkeypatch):
    monkeypatch.setattr("training.ranks.stopping._SAME_KEY_PRESS_SECONDS", 0.0)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_that_a_launcher_passes_on_as_well_counts_once(requests, capfd):
    for _ in range(3):
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("rank 0 got SIGINT") == 1
