"""What the study counts and its tables say."""

from __future__ import annotations

import pytest

from benchmarks.study.comparison import area, best_epoch, best_loss, places_of
from benchmarks.study.settings import TUNING_SEED
from benchmarks.study.spread import mask_bits
from benchmarks.study.summary import (
    equal_compute_table,
    gain_of,
    general_table,
    places_table,
    summary_table,
)
from benchmarks.study.tables import knowledge_table, losses_table
from benchmarks.study.tradeoff import best_share, cost_of, tradeoff_table
from tests.benchmarks.study_rows import row


def test_measures_leave_the_untrained_model_out_of_the_best():
    found = row("none", 1, [1.0, 3.0, 2.0, 4.0])
    assert (best_loss(found), best_epoch(found)) == (2.0, 2.0)
    assert area(found) == pytest.approx((2.0 + 2.5 + 3.0) / 3)


def test_differences_are_paired_by_seed_and_by_rate():
    rate = {"dropout.max_rate": 0.6}
    rows = [row("none", 1, [9.0, 5.0]), row("none", 2, [9.0, 7.0]), row("none", 3, [9.0, 1.0])]
    rows += [row("random_input", seed, [9.0, 4.0 + seed], **rate) for seed in (1, 2)]
    rows += [row("entrodrop_input", seed, [9.0, 3.0 + seed], **rate) for seed in (1, 2)]
    rows += [row("entrodrop_loss", seed, [9.0, 3.0], **rate) for seed in (1, 2)]
    rows += [row("half_guided", seed, [9.0, 3.0], **rate) for seed in (1, 2)]
    (place,) = places_of(rows)
    measured = place.arms["entrodrop_input"].minus(
        place.arms["none"], lambda r: r["curve"]["loss"][-1]
    )
    assert measured.mean == -1.5
    assert "| none |  | 3 | 4.333 ± 7.590 |" in losses_table(place)
    assert place.random_partner("entrodrop_input") is place.arms["random_input"]
    assert place.random_partner("half_guided") is place.arms["random_input"]
    assert place.random_partner("entrodrop_loss") is None  # no loss was dropped at random
    assert place.random_partner("none") is None


def test_masks_of_random_dropout_vary_most_at_an_equal_rate():
    rows = [row("none", 1, [9.0, 5.0])]
    for arm in (
        "random_input",
        "entrodrop_input",
        "high_input",
        "half_guided",
        "constant_input",
        "random_loss",
    ):
        rows.append(row(arm, 1, [9.0, 4.0], **{"dropout.max_rate": 1.0}))
    (place,) = places_of(rows)
    bits = {name: mask_bits(runs) for name, runs in place.arms.items()}
    assert bits == {
        "none": 0.0,
        "random_input": 1.0,  # each token by the toss of a coin
        "entrodrop_input": 0.0,  # the half of low entropy, always
        "high_input": 0.0,
        "half_guided": pytest.approx(0.811, abs=1e-3),  # of one chance in four or three in four
        "constant_input": None,
        "random_loss": None,
    }


def lever_row(arm: str, seed: int, best: float, *, halfway: float, **chosen: float) -> dict:
    found = row(arm, seed, [9.0, best, 8.0], **chosen)
    found["best"] = {"domain_loss": best, "general_loss": 5.0 - best}
    found["between"] = {"0.5": {"domain_loss": halfway, "general_loss": 1.0}}
    return found


def test_a_share_of_the_base_is_chosen_on_the_tuning_slice_and_costs_count_replay():
    rows = [lever_row("plain", TUNING_SEED, 3.0, halfway=3.5)]
    rows += [lever_row("plain", seed, 3.0 + seed, halfway=2.5 + seed) for seed in (1, 2)]
    share = {"replay.share": 0.25}
    rows += [lever_row("replay", TUNING_SEED, 3.0, halfway=2.0, **share)]
    rows += [lever_row("replay", seed, 2.5 + seed, halfway=2.25 + seed, **share) for seed in (1, 2)]
    (place,) = places_of(rows)
    plain, replay = place.arms["plain"], place.arms["replay"]
    assert (best_share(place, plain), best_share(place, replay)) == ("1", "0.5")
    assert (cost_of(plain), cost_of(replay)) == (1.0, pytest.approx(4 / 3))
    line = next(text for text in tradeoff_table(place).splitlines() if "replay" in text)
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[6] == "**−0.500 ± 0.000**" and cells[8] == "**+0.500 ± 0.000**"
    assert cells[9:11] == ["0.5", "**−0.750 ± 0.000**"]
    gain = gain_of(place, "plain", on_the_way=True)
    assert gain is not None and gain.domain.mean == 0.0
    without = [{key: row[key] for key in row if key != "between"} for row in rows]
    assert gain_of(places_of(without)[0], "plain", on_the_way=True) is None  # not level: not scored
    # runs of another study than that of levers, and one whose tuning is under way
    (place,) = places_of([row("plain", seed, [9.0, 3.0]) for seed in (TUNING_SEED, 1)])
    assert best_share(place, place.arms["plain"]) == "1"
    (place,) = places_of([lever_row("plain_slow", 1, 3.0, halfway=3.5)])
    assert best_share(place, place.arms["plain_slow"]) == "1"


def test_a_table_shows_answers_where_all_runs_of_an_arm_have_them():
    asked = {"answers": {"words": {"right": 0.5, "standard_error": 0.04}}}
    scored = {"completed": {}, "general_loss": 1.0, "canaries": {"exact": 0.0, "exposure_bits": 1}}
    rows = [row("plain", 1, [9.0, 3.0]), row("replay", 1, [9.0, 3.0])]
    for found in rows:
        found |= {"final": found["final"] | scored, "best": dict(scored)}
    (place,) = places_of(rows)
    assert "right" not in knowledge_table(place)
    for when in ("final", "best"):
        rows[0][when] |= asked
    (place,) = places_of(rows)
    plain, replay = knowledge_table(place).splitlines()[2:4]
    assert plain.endswith("| 0.500 | 0.500 |") and replay.endswith("|  |  |")


def test_a_summary_shows_arms_of_enough_places_with_ranges_over_them():
    arms = {"plain": (3.0, 3.0), "replay": (2.0, 2.5), "ema_weights": (2.75, None)}
    places = {}
    for place, title in enumerate(("prose", "code")):
        rows = [
            lever_row(arm, seed, best[place] + seed, halfway=9.0)
            for arm, best in arms.items()
            for seed in (1, 2)
            if best[place] is not None
        ]
        (places[title],) = places_of(rows)
    assert summary_table(places, fewest=2).splitlines() == [
        "| best loss | prose | code | general text | compute |",
        "| --- | --- | --- | --- | --- |",
        "| replay | **−1.000 ± 0.000** | **−0.500 ± 0.000** | +0.50 to +1.00 | 1.0 |",
    ]
    best, last = summary_table(places, fewest=1).splitlines()[2:]
    assert "replay" in best and last.startswith("| EMA of weights | **−0.250 ± 0.000** |  |")
    assert general_table(places, fewest=2).splitlines()[2:] == [
        "| replay | **+1.000 ± 0.000** | **+0.500 ± 0.000** |"
    ]
    prose = places_table(places).splitlines()[2]
    assert prose == "| prose | 2 | 4.500 ± 6.353 | 1.0 of 2 |  | 0.50 |"


def test_at_equal_compute_only_the_evaluations_count_that_it_allows():
    """An epoch with a teacher costs a third more: of its four epochs three are within plain's."""
    plain = [row("plain", seed, [9.0, 5.0, 4.0, 6.0, 7.0]) for seed in (1, 2)]
    taught = [row("ema_teacher", seed, [9.0, 5.0, 4.5, 3.5, 3.0]) for seed in (1, 2)]
    (place,) = places_of(plain + taught)
    assert equal_compute_table({"prose": place}, fewest=1).splitlines()[2:] == [
        "| EMA teacher | **−0.500 ± 0.000** |"
    ]
