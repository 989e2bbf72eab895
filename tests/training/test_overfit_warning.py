"""Overfitting is said when held-out loss rises while training loss falls, once, and not else."""

from __future__ import annotations

from typing import Any

import pytest

from training.metrics.overfit_warning import OverfitWatch, find_overfitting


def evaluations(
    heldout: list[float], training: list[float | None], bands: list[list[float]] | None = None
) -> list[dict[str, Any]]:
    return [
        {
            "step": 10 * number,
            "loss": loss,
            "train_loss": training[number],
            "bands": [
                {"band": band + 1, "loss": series[number]}
                for band, series in enumerate(bands or [])
            ],
        }
        for number, loss in enumerate(heldout)
    ]


FALLING: list[float | None] = [None, 5.0, 4.0, 3.0, 2.0]


def test_a_rise_after_the_best_names_the_best_step():
    found = find_overfitting(evaluations([6.0, 5.0, 4.5, 4.7, 4.9], FALLING))
    assert found is not None
    assert (found.names, found.best_step, found.best_loss) == (("all",), 20, 4.5)
    assert "best at step 20" in str(found)


def test_a_rise_from_the_start_is_no_overfitting_and_names_no_best():
    found = find_overfitting(evaluations([6.0, 6.5, 7.0, 7.5, 8.0], FALLING))
    assert str(found) == (
        "forgetting or too high a learning rate: held-out loss (all) rises from what it was before "
        "training (6.0000, now 8.0000) while the training loss falls"
    )


@pytest.mark.parametrize(
    ("best_by", "said"),
    [("general", "held-out loss of general rises"), ("weighted", "weighted held-out loss rises")],
)
def test_the_set_that_rises_is_named(best_by, said):
    rows = evaluations([6.0, 5.0, 4.5, 4.7, 4.9], FALLING)
    found = find_overfitting([row | {"best_by": best_by} for row in rows])
    assert str(found) == (
        f"overfitting: {said} (all) while the training loss falls; it was best at step 20 "
        "(4.5000, now 4.9000)"
    )


@pytest.mark.parametrize(
    "heldout",
    [
        [6.0, 5.0, 4.5, 4.4, 4.3],  # still falling
        [6.0, 5.0, 4.5, 4.9, 4.6],  # coming down again
        [6.0, 5.0, 4.5, 4.51, 4.515],  # noise
        [6.0, 5.0, 4.5, 4.4, 4.9],  # one evaluation alone
    ],
)
def test_what_is_no_rise_is_not_called_one(heldout):
    assert find_overfitting(evaluations(heldout, FALLING)) is None


def test_a_run_that_diverges_does_not_overfit():
    rising: list[float | None] = [None, 3.0, 4.0, 5.0, 6.0]
    assert find_overfitting(evaluations([6.0, 5.0, 4.5, 4.7, 4.9], rising)) is None


def test_a_band_is_named_before_the_whole_rises():
    bands = [[2.0, 1.5, 1.0, 0.8, 0.7], [8.0, 7.5, 7.0, 7.2, 7.4]]
    found = find_overfitting(evaluations([5.0, 4.5, 4.0, 4.0, 3.9], FALLING, bands))
    assert found is not None
    assert found.names == ("band 2",)


def test_after_a_change_of_what_is_best_only_the_evaluations_since_count():
    """A weighted loss has no bands, and that of another set has others."""
    before = evaluations([6.0, 5.0, 4.0, 3.0], [None, 9.0, 8.0, 7.0])
    for number, row in enumerate(evaluations([6.0, 5.0, 4.5, 4.7, 4.9], FALLING, [[5.0] * 5])):
        before.append(row | {"step": 100 + number})
        found = find_overfitting(before)
        assert (found is not None) == (number == 4)
    assert found is not None
    assert (found.names, found.best_step) == (("all",), 102)
    edges = [{"band": 1, "from_nats": 0.0, "to_nats": 2.0, "loss": 5.0}]
    assert find_overfitting([*before, before[-1] | {"bands": edges}]) is None
    assert find_overfitting([*before, before[-1] | {"bands": []}]) is None


def test_a_watch_says_each_thing_once_and_goes_on_after_a_resume():
    rows: list[dict[str, Any]] = []
    for number, heldout in enumerate([6.0, 5.0, 4.5, 4.7, 4.9, 5.1]):
        rows += [{"kind": "step", "step": number, "loss": 9.0 - number - part} for part in (0, 0.5)]
        rows.append({"kind": "evaluation", "step": number, "loss": heldout, "bands": []})
    watch = OverfitWatch()
    said = [row["step"] for row in rows if watch.saw(row)]
    assert said == [4]
    resumed = OverfitWatch()
    before, after = rows[:11], rows[11:]
    assert not any(resumed.saw(row) for row in before)
    assert [row["step"] for row in after if resumed.saw(row)] == said
