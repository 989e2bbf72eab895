"""Which checkpoints go: never the newest, never the best, never one of a step that is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoints.manifest import write_manifest
from training.checkpoints.retention import Saved, checkpoints_to_delete, prune
from training.config.sections import Checkpoint
from training.tasks.weights import find_weights

LOSSES = {100: 3.0, 200: 2.0, 300: 1.5, 400: 1.7, 500: 1.9}
FIVE = [Saved(step, loss) for step, loss in LOSSES.items()]


@pytest.mark.parametrize(
    ("rules", "removed"),
    [
        ({"keep_last": 2}, [100, 200, 300]),
        ({"keep_last": 9}, []),
        ({"keep_last": 2, "keep_best": 1}, [100, 200]),
        ({"keep_last": 1, "keep_best": 2}, [100, 200]),
        ({"keep_last": 1, "keep_every_steps": 200}, [100, 300]),
        ({"keep_last": 1, "keep_best": 1, "keep_every_steps": 200}, [100]),
    ],
)
def test_each_rule_keeps_what_it_names(rules, removed):
    assert checkpoints_to_delete(FIVE, newest_step=500, **rules) == removed


def test_of_several_saves_after_one_evaluation_the_first_is_the_best():
    """It was the one evaluated; the later ones trained on."""
    saved = [Saved(100, 1.5), Saved(150, 1.5), Saved(200, 1.8), Saved(250, 1.8)]
    assert checkpoints_to_delete(saved, newest_step=250, keep_last=1, keep_best=1) == [150, 200]


def test_without_an_evaluation_or_with_a_loss_that_is_no_number_nothing_is_best():
    saved = [Saved(1, None), Saved(2, float("nan")), Saved(3, float("inf")), Saved(4, None)]
    assert checkpoints_to_delete(saved, newest_step=4, keep_last=1, keep_best=3) == [1, 2, 3]


def test_a_line_that_the_run_has_left_counts_for_nothing():
    """A start from 300, since 400 and 500 were damaged, saves 350: these must not be its last."""
    saved = [*FIVE, Saved(350, 1.6)]
    assert checkpoints_to_delete(saved, newest_step=350, keep_last=2, keep_best=1) == [
        100,
        200,
        400,
        500,
    ]


checkpoints = st.lists(
    st.builds(Saved, st.integers(1, 60), st.none() | st.floats(0, 9) | st.just(float("nan"))),
    unique_by=lambda one: one.step,
    min_size=1,
)


@given(checkpoints, st.integers(1, 4), st.integers(0, 3), st.none() | st.integers(1, 9))
def test_the_newest_and_the_best_always_stay(saved, keep_last, keep_best, keep_every_steps):
    newest_step = max(one.step for one in saved)
    removed = checkpoints_to_delete(
        saved,
        newest_step=newest_step,
        keep_last=keep_last,
        keep_best=keep_best,
        keep_every_steps=keep_every_steps,
    )
    kept = [one for one in saved if one.step not in removed]
    assert newest_step in {one.step for one in kept}
    losses = [one.heldout_loss for one in saved if one.heldout_loss is not None]
    losses = [loss for loss in losses if loss == loss]
    if keep_best and losses:
        assert min(losses) in {one.heldout_loss for one in kept}
    assert not keep_every_steps or all(step % keep_every_steps for step in removed)
    assert len(kept) >= min(keep_last, len(saved))


def test_the_best_stays_on_disk_until_there_is_a_better_one(tmp_path: Path):
    settings = Checkpoint(keep_last=1, keep_best=True)
    seen = []
    for step, loss in (*LOSSES.items(), (600, 1.2)):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        write_manifest(folder, {"step": step, "heldout_loss": loss}, files={})
        prune(tmp_path, newest_step=step, settings=settings)
        seen.append(sorted(int(path.name.removeprefix("step-")) for path in tmp_path.iterdir()))
    assert seen == [[100], [200], [300], [300, 400], [300, 500], [600]]


def test_the_base_models_loss_does_not_keep_a_checkpoint(tmp_path: Path):
    """As older versions saved it with those of before the first evaluation."""
    for step, loss, evaluated_step in ((1, 0.5, 0), (2, 1.5, 2), (3, 1.7, 3)):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        content = {"step": step, "heldout_loss": loss, "evaluated_step": evaluated_step}
        write_manifest(folder, content, files={})
    prune(tmp_path, newest_step=3, settings=Checkpoint(keep_last=1, keep_best=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_losses_of_two_kinds_are_not_compared(tmp_path: Path):
    """As after `--accept-changes recipe.evaluation.best_by`: the first ones were of easier text."""
    (tmp_path / "recipe.resolved.yaml").touch()
    losses = {1: ("a", 0.4), 2: ("a", 0.3), 3: ("b", 0.9), 4: ("b", 0.7), 5: ("b", 0.8)}
    seen = []
    for step, (best_by, loss) in losses.items():
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        identity = {"pack": "p", "recipe": {"evaluation": {"best_by": best_by}}}
        content = {"step": step, "tokens": 9, "heldout_loss": loss, "identity": identity}
        write_manifest(folder, content, files={})
        prune(folder.parent, newest_step=step, settings=Checkpoint(keep_last=1, keep_best=1))
        names = (path.name.removeprefix("step-") for path in folder.parent.iterdir())
        best = find_weights(tmp_path, checkpoint="best").step
        seen.append((sorted(int(name) for name in names), best))
    assert seen == [([1], 1), ([2], 2), ([2, 3], 3), ([2, 4], 4), ([2, 4, 5], 4)]


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path: Path):
    for step, loss in enumerate((math.nan, 2.0, 1.5, None, math.inf)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_manifest(folder, {"step": step, "tokens": 9, "heldout_loss": loss}, files={})
    (tmp_path / "recipe.resolved.yaml").touch()
    assert find_weights(tmp_path, checkpoint="best").step == 2


def test_a_checkpoint_that_cannot_be_read_is_left_for_a_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for step in (1, 2, 3):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        write_manifest(folder, {"step": step, "heldout_loss": None}, files={})
    (tmp_path / "step-00000001" / "complete.json").write_text(json.dumps({"step": 1}))
    prune(tmp_path, newest_step=3, settings=Checkpoint(keep_last=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]
    told = f"{tmp_path / 'step-00000001'}: not a readable checkpoint, left in place: damaged"
    assert told in capsys.readouterr().err
    prune(tmp_path, newest_step=3, settings=Checkpoint(keep_last=1))
    assert not capsys.readouterr().err  # once, and not after each save
