"""The curriculum starts at 0, ends at full strength and never falls."""

from __future__ import annotations

import pytest

from training.entrodrop.curriculum import curriculum_strength


@pytest.mark.parametrize("kind", ["sigmoid", "linear", "cosine"])
def test_strength_rises_from_zero_to_one(kind):
    values = [curriculum_strength(p / 100, kind=kind) for p in range(101)]
    assert values[0] == 0.0
    assert values[100] == 1.0
    assert values == sorted(values)


def test_midpoint_and_steepness_of_the_sigmoid():
    assert curriculum_strength(0.5, midpoint=0.5, steepness=10) == pytest.approx(0.5)
    early, late = (curriculum_strength(0.5, midpoint=m, steepness=10) for m in (0.2, 0.8))
    assert early > 0.9 and late < 0.1
    assert (
        curriculum_strength(0.4, steepness=1000)
        < 1e-6
        < 0.999
        < curriculum_strength(0.6, steepness=1000)
    )


def test_constant_is_full_from_the_start():
    assert curriculum_strength(0.0, kind="constant") == 1.0


def test_progress_beyond_the_plan_stays_at_the_end():
    assert curriculum_strength(1.2, kind="linear") == 1.0
    assert curriculum_strength(-0.1, kind="linear") == 0.0


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="sigmoid, linear, cosine, constant"):
        curriculum_strength(0.5, kind="step")
