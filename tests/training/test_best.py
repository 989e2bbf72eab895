"""What is best is the loss that the recipe chose, and too long without a new best ends a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.layouts import tiny_recipe
from training.checkpoints.load import progress_of
from training.checkpoints.progress import Progress
from training.config.sections import StopWhen
from training.run.best import evaluation_row, is_best_so_far, judged, reason_to_end
from training.run.evaluate_run import measures_alike

SETS: dict[str, Any] = {"domain": {}, "general": {"corpus": "other"}}
RESULTS = {
    "domain": {"loss": 2.0, "seconds": 1.0, "forgetting_nats": -1.0, "bands": [{"band": 1}]},
    "general": {"loss": 5.0, "seconds": 2.0, "forgetting_nats": 0.5, "bands": [{"band": 1}]},
}


def row_of(**evaluation: Any) -> dict[str, Any]:
    recipe = tiny_recipe(evaluation={"sets": SETS, **evaluation})
    return evaluation_row({name: dict(found) for name, found in RESULTS.items()}, recipe.evaluation)


@pytest.mark.parametrize(
    ("evaluation", "best_by", "loss", "forgetting"),
    [
        ({}, "domain", 2.0, -1.0),  # the first
        ({"best_by": "general"}, "general", 5.0, 0.5),
        ({"best_by": "weighted", "weights": {"domain": 2, "general": 1}}, "weighted", 3.0, -0.5),
        ({"best_by": "weighted", "weights": {"general": 7}}, "general", 5.0, 0.5),
    ],
)
def test_the_loss_of_an_evaluation_is_the_one_that_the_recipe_chose(
    evaluation, best_by, loss, forgetting
):
    row = row_of(**evaluation)
    assert row["best_by"] == best_by
    assert row["loss"] == pytest.approx(loss)
    assert row["forgetting_nats"] == pytest.approx(forgetting)
    assert {name: found["loss"] for name, found in row["sets"].items()} == {
        "domain": 2.0,
        "general": 5.0,
    }
    assert row["seconds"] == 3.0


def after(losses: list[float], *, start: int = 0, progress: Progress | None = None) -> Progress:
    progress = progress or judged(Progress(step=0, tokens=0), 0.1, counts=False)
    for step, loss in enumerate(losses, start=start + 1):
        state = vars(progress) | {"step": step}
        progress = judged(Progress(**state), loss, counts=True)
    return progress


@pytest.mark.parametrize(
    ("losses", "best_step", "is_over"),
    [
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.5, 2.4], 2, True),
        ([3.0, 2.0, 2.5, 1.9, 2.4], 4, False),
        ([3.0, 3.0, 3.0], 1, True),  # as good as the best is not better
        ([math.nan, math.nan], None, True),
        ([3.0, math.nan, 2.0], 3, False),
    ],
)
def test_a_run_is_over_when_it_has_no_new_best_for_so_many_evaluations(losses, best_step, is_over):
    progress = after(losses)
    assert progress.best_step == best_step
    reason = reason_to_end(progress, StopWhen(worse_for=2))
    assert (reason is not None) == is_over
    assert reason_to_end(progress, None) is None


def test_the_evaluation_before_the_first_step_is_not_the_best():
    """There is no checkpoint of it."""
    progress = after([3.0])
    assert (progress.best_step, progress.best_loss) == (1, 3.0)
    assert is_best_so_far(progress)


def test_a_checkpoint_from_before_the_first_evaluation_has_no_loss_of_the_base_model():
    progress = judged(Progress(step=0, tokens=0), 0.1, counts=False)
    assert (progress.heldout_loss, progress.evaluated_step) == (None, 0)


NO_SETS = {"best_by": None, "weights": None, "sets": None, "max_samples": 6, "num_bands": 4}


@pytest.mark.parametrize(
    ("evaluation", "more", "is_kept"),
    [
        ({}, {}, True),
        ({"num_bands": 8}, {"others": {"sets.general": "b", "replay": "other"}}, True),
        ({"best_by": "general"}, {}, False),
        ({"weights": {"domain": 1.0}}, {}, False),
        ({"max_samples": 5}, {}, False),
        ({}, {"pack": "other"}, False),
        ({}, {"others": {"sets.general": "other"}}, False),
    ],
)
def test_what_was_best_by_another_loss_is_forgotten(evaluation, more, is_kept):
    """As after `--accept-changes recipe.evaluation.best_by`."""
    saved = {"pack": "a", "others": {"sets.general": "b"}, "recipe": {"evaluation": NO_SETS}}
    progress = after([3.0, 2.0, 2.5])
    manifest = vars(progress) | {"identity": saved}
    current = saved | {"recipe": {"evaluation": NO_SETS | evaluation}} | more
    unjudged = {"heldout_loss": None, "best_loss": None, "best_step": None, "num_since_best": 0}
    expected = progress if is_kept else Progress(**vars(progress) | unjudged)
    assert progress_of(manifest, current) == expected


@given(st.lists(st.floats(0, 9), min_size=1), st.integers(0, 30))
def test_a_judgement_carried_by_a_checkpoint_is_that_of_the_whole_run(losses, cut):
    first = after(losses[:cut])
    assert after(losses[cut:], start=len(losses[:cut]), progress=first) == after(losses)


def test_an_evaluation_at_a_stop_says_how_good_it_is_but_does_not_count():
    before = after([3.0, 2.0])
    at_stop = judged(Progress(**vars(before) | {"step": 7}), 1.0, counts=False)
    assert (at_stop.heldout_loss, at_stop.evaluated_step) == (1.0, 7)
    assert (at_stop.best_loss, at_stop.num_since_best) == (2.0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation__best_by": "domain"},
            r"evaluation\.best_by: no held-out set 'domain'; evaluation\.sets names none",
        ),
        ({"evaluation__sets": {}}, r"evaluation\.sets: name at least one"),
        (
            {"evaluation__sets": SETS, "evaluation__best_by": "genral"},
            r"evaluation\.best_by: no held-out set 'genral'; did you mean general\?",
        ),
        (
            {"evaluation__sets": SETS, "evaluation__best_by": "weighted"},
            r"best_by: weighted and evaluation\.weights need each other \(are weighted and None\)",
        ),
        (
            {"evaluation__sets": SETS, "evaluation__weights": {"domain": 1}},
            r"best_by: weighted and evaluation\.weights need each other",
        ),
        (
            {
                "evaluation__sets": SETS,
                "evaluation__best_by": "weighted",
                "evaluation__weights": {"domian": 1},
            },
            r"evaluation\.weights\.domian: no held-out set 'domian'; did you mean domain\?",
        ),
        (
            {
                "evaluation__sets": SETS,
                "evaluation__best_by": "weighted",
                "evaluation__weights": {"domain": 0},
            },
            r"evaluation\.weights: at least one must be above 0",
        ),
        (
            {
                "evaluation__sets": SETS,
                "evaluation__best_by": "weighted",
                "evaluation__weights": {"domain": 1e308, "general": 1e308},
            },
            r"evaluation\.weights: too large to be added up",
        ),
        ({"evaluation__sets": {"weighted": {}}}, r"sets\.weighted: a set cannot have this name"),
        ({"evaluation__sets": {"a b": {}}}, r"evaluation\.sets\.a b"),
        (
            {"evaluation__sets": {"general": {"corpsu": "x"}}},
            r"evaluation\.sets\.general\.corpsu: unknown key; did you mean .*\.corpus\?",
        ),
        (
            {"train__stop_when": {"worse_for": 2}, "evaluation__every_steps": None},
            r"train\.stop_when needs evaluations: set evaluation\.every_steps",
        ),
        (
            {"checkpoint": {"save_best": True, "keep_best": 0}},
            r"checkpoint\.save_best needs checkpoint\.keep_best of at least 1",
        ),
        ({"train__stop_when": {"worse_for": 0}}, r"train\.stop_when\.worse_for: .*\(is 0\)"),
    ],
)
def test_a_choice_of_the_best_that_cannot_be_met_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_recipe(**changes)


WEIGHTED = {"sets": SETS, "best_by": "weighted", "weights": {"domain": 1, "general": 1}}


@pytest.mark.parametrize(
    ("evaluation", "is_own"),
    [
        ({}, True),
        ({"every_steps": 7}, True),
        ({"max_samples": 3}, False),
        ({"best_by": "domain", "weights": None}, False),
        ({"weights": {"domain": 3, "general": 1}}, False),
    ],
)
def test_only_an_evaluation_like_those_of_the_run_is_kept_as_its_own(evaluation, is_own):
    own = tiny_recipe(evaluation=WEIGHTED)
    assert measures_alike(tiny_recipe(evaluation=WEIGHTED | evaluation), own) is is_own
