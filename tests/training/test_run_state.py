"""run_state.json says what became of a run, whichever way it ended."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.training.short_runs import short_recipe, train_on_rank
from training.config.recipe import Recipe
from training.ranks.run_state import RUN_STATE_FILE, RunRecord, note_failure, read_run_state


def begun(run_dir: Path, *, step: int = 0) -> RunRecord:
    record = RunRecord(run_dir, rank=0, total_steps=8)
    assert record.begin(step) is None
    return record


def test_a_run_keeps_its_id_and_counts_its_starts(tmp_path):
    first = begun(tmp_path)
    first.saved(4)
    before = read_run_state(tmp_path)
    assert (before.state, before.step, before.total_steps) == ("running", 4, 8)
    first.stopped(5, "SIGTERM")
    assert read_run_state(tmp_path).reason == "SIGTERM"
    second = begun(tmp_path, step=5)
    after = read_run_state(tmp_path)
    assert (after.state, after.step, after.reason, after.num_starts) == ("running", 5, None, 2)
    assert after.run_id == before.run_id
    second.complete(8)
    assert (read_run_state(tmp_path).state, read_run_state(tmp_path).step) == ("complete", 8)


def test_two_runs_have_two_ids(tmp_path):
    ids = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        begun(tmp_path / name)
        ids.add(read_run_state(tmp_path / name).run_id)
    assert len(ids) == 2


def test_only_rank_0_writes_unless_a_rank_fails(tmp_path):
    begun(tmp_path)
    RunRecord(tmp_path, rank=1, total_steps=8).saved(4)
    assert read_run_state(tmp_path).step == 0
    with (
        pytest.raises(ZeroDivisionError),
        RunRecord(tmp_path, rank=1, total_steps=8),
    ):
        _ = 1 / 0
    state = read_run_state(tmp_path)
    assert state.state == "failed"
    assert state.reason == "rank 1: ZeroDivisionError: division by zero"


def test_the_first_failure_is_kept(tmp_path):
    begun(tmp_path)
    note_failure(tmp_path, rank=1, message="disk full")
    note_failure(tmp_path, rank=0, message="connection closed by peer")
    assert read_run_state(tmp_path).reason == "rank 1: disk full"


def test_a_full_disk_leaves_the_old_content_and_the_run(tmp_path, monkeypatch, capsys):
    record = begun(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        record.saved(4)
    assert read_run_state(tmp_path).step == 0
    assert "No space left on device" in capsys.readouterr().err


def test_keys_of_a_later_version_are_passed_over(tmp_path):
    begun(tmp_path)
    path = tmp_path / RUN_STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    assert read_run_state(tmp_path).state == "running"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('{"state": "run', "Unterminated string"),
        ("[]", "expected an object, found list"),
        ("{}", "lacks state, run_id, step"),
        ({"state": "asleep"}, "state is 'asleep', not one of running, stopped, complete, failed"),
        ({"step": "4"}, "step is '4', not an integer"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_with_what_to_do(tmp_path, change, expected):
    begun(tmp_path)
    path = tmp_path / RUN_STATE_FILE
    whole = json.loads(path.read_text())
    path.write_text(change if isinstance(change, str) else json.dumps(whole | change))
    with pytest.raises(ValueError) as caught:
        read_run_state(tmp_path)
    assert expected in str(caught.value)
    assert "remove the file to continue" in str(caught.value)
    assert RunRecord(tmp_path, rank=0, total_steps=8).begin(0) == str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run has started training there"):
        read_run_state(tmp_path)


def train_and_fail(recipe: Recipe) -> None:
    """Rank 1 fails in the data of its third step, and the launcher at once ends what is left."""
    import training.ranks.run_state
    import training.run.run
    from training.data.prefetch import PrefetchingStream

    read, note = PrefetchingStream.step, training.ranks.run_state.note_failure

    def read_or_fail(stream: PrefetchingStream, step: int) -> Any:
        if stream.split == "train" and step == 2 and os.environ["RANK"] == "1":
            raise OSError("shard 7 is gone")
        return read(stream, step)

    def note_after_sigterm(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        note(*args, **options)

    PrefetchingStream.step = read_or_fail  # type: ignore[method-assign]
    training.ranks.run_state.note_failure = note_after_sigterm
    training.run.run.train(recipe)


def test_an_error_of_any_rank_is_told_and_a_later_start_mends_it(small_corpus, tmp_path):
    changes = {"evaluation": {"every_steps": None}}
    recipe = short_recipe(small_corpus, tmp_path, **changes)
    stopping = short_recipe(small_corpus, tmp_path, train__stop_after_steps=1, **changes)
    run_ranks(train_on_rank, stopping, world_size=2)
    assert read_run_state(tmp_path).reason == "train.stop_after_steps"
    with pytest.raises(AssertionError, match="shard 7 is gone"):
        run_ranks(train_and_fail, recipe, world_size=2)
    state = read_run_state(tmp_path)
    assert (state.state, state.step) == ("failed", 1)
    assert state.reason == "rank 1: OSError: shard 7 is gone"
    before = state.run_id

    refused = short_recipe(small_corpus, tmp_path, optimizer__lr=0.5, **changes)
    with pytest.raises(AssertionError, match="other settings"):
        run_ranks(train_on_rank, refused, world_size=2)
    assert read_run_state(tmp_path) == state  # of the start before

    run_ranks(train_on_rank, recipe, world_size=2)
    state = read_run_state(tmp_path)
    assert (state.state, state.reason, state.num_starts) == ("complete", None, 3)
    assert state.run_id == before
