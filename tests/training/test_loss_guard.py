"""Which steps are called bad, what is done with them, and that a resume decides the same."""

from __future__ import annotations

import math

import pytest

from training.config.sections import Guard
from training.run.loss_guard import LossGuard, judge_rerun


def guard_after(losses: list[float], **settings: object) -> LossGuard:
    guard = LossGuard(Guard(**settings))  # type: ignore[arg-type]
    for loss in losses:
        guard.keep(loss=loss, grad_norm=loss / 2)
    return guard


STEADY = [3.0 + 0.1 * (-1) ** number for number in range(40)]


@pytest.mark.parametrize("action", ["skip", "rollback", "stop"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_bad_from_the_first_step(value, action):
    guard = guard_after([], on_not_finite=action)
    for found in (guard.examine_loss(value), guard.examine_gradient(value)):
        assert found is not None
        assert found.action == action
    assert "loss is" in guard.examine_loss(value).reason


def test_a_spike_is_measured_in_sigmas_of_the_window():
    guard = guard_after(STEADY, on_spike="skip", spike_sigmas=6.0)
    assert guard.examine_loss(3.5) is None  # five sigmas
    found = guard.examine_loss(3.8)
    assert found is not None
    assert found.action == "skip"
    assert "8.0 sigmas above the mean 3 of the last 40 steps" in found.reason
    assert guard.examine_loss(0.1) is None  # a fall is no spike


def test_no_spike_before_enough_steps_are_known_or_when_none_are_looked_for():
    assert guard_after(STEADY[:15]).examine_loss(100.0) is None
    assert guard_after(STEADY[:16]).examine_loss(100.0) is not None
    assert guard_after(STEADY, spike_sigmas=None).examine_loss(100.0) is None


def test_a_loss_that_stood_still_makes_no_ripple_a_spike():
    guard = guard_after([3.0] * 64)
    assert guard.examine_loss(3.3) is None
    assert guard.examine_loss(4.0) is not None


def test_old_steps_leave_the_window():
    guard = guard_after([100.0] * 20 + STEADY, window_steps=32)
    assert guard.losses == tuple(STEADY[-32:])
    assert guard.examine_loss(50.0) is not None


@pytest.mark.parametrize(("on_spike", "expected"), [("skip", "report"), ("rollback", "rollback")])
def test_an_exploded_gradient_cannot_be_skipped_any_more(on_spike, expected):
    found = guard_after(STEADY, on_spike=on_spike).examine_gradient(40.0)
    assert found is not None
    assert found.action == expected
    assert "gradient norm" in found.reason


def test_a_resumed_guard_decides_the_same():
    guard = guard_after(STEADY)
    resumed = LossGuard(Guard(), losses=guard.losses, grad_norms=guard.grad_norms)
    for value in (3.5, 3.7, 3.9, 50.0):
        assert resumed.examine_loss(value) == guard.examine_loss(value)


def test_a_step_that_is_not_learnt_from_does_not_count_for_later_ones():
    guard = guard_after(STEADY, on_spike="skip")
    assert guard.examine(loss=9.0, grad_norm=1.5) is not None
    assert guard.losses == tuple(STEADY)
    assert guard.examine(loss=3.0, grad_norm=1.5) is None
    assert guard.losses == (*STEADY, 3.0)


@pytest.mark.parametrize("on_spike", ["report", "skip", "rollback", "stop"])
def test_only_some_actions_need_the_loss_before_the_update(on_spike):
    assert guard_after([], on_spike=on_spike).decides_before_update == (on_spike != "report")


@pytest.mark.parametrize(
    ("first", "second", "at_fault"),
    [
        (math.nan, math.nan, "batch"),
        (math.nan, 3.0, "machine"),
        (9.0, 9.0001, "batch"),
        (9.0, 3.0, "machine"),
    ],
)
def test_a_rerun_tells_the_batch_from_the_machine(first, second, at_fault):
    assert f"the {at_fault}" in judge_rerun(first, second)
