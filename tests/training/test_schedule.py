"""Learning rates warm up, reach the peak, and end where the recipe says."""

from __future__ import annotations

import pytest

from training.run.schedule import learning_rate


def rates(kind: str, total_steps: int = 100, **changes: float) -> list[float]:
    settings = {"warmup_frac": 0.1, "decay_frac": 0.2, "final_lr_frac": 0.1} | changes
    return [
        learning_rate(step, peak=2.0, total_steps=total_steps, kind=kind, **settings)
        for step in range(total_steps)
    ]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_rate_rises_to_the_peak_and_never_exceeds_it(kind):
    values = rates(kind)
    assert values[:10] == sorted(values[:10])
    assert 0 < values[0] < values[9] < 2.0
    assert values[10] == pytest.approx(2.0)
    assert max(values) <= 2.0


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_rate_ends_at_the_final_share(kind):
    values = rates(kind)
    assert values[-1] == pytest.approx(0.2)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_wsd_stays_at_the_peak_until_its_decay():
    values = rates("wsd")
    assert set(values[10:80]) == {2.0}
    assert values[80] < 2.0


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_the_shortest_runs_have_a_positive_rate(kind, total_steps):
    assert all(0 < rate <= 2.0 for rate in rates(kind, total_steps))
