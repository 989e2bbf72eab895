"""The second round's table of a place: the best loss, and what the base knew at that point."""

from __future__ import annotations

from typing import Any

from benchmarks.study.comparison import (
    ArmRuns,
    Measure,
    Place,
    best_epoch,
    best_loss,
    final_loss,
    known,
)
from benchmarks.study.tables import difference, markdown, number, setting_of
from training.reports.intervals import Interval, mean_interval

LEGEND = """\
`best` is the lowest loss of all evaluations, which is what stopping in time would keep; `general`
is the loss of general text at that point. `at share` are weights between the base and the best
ones: the share of the way with the lowest loss on the tuning slice, 1 for the best ones themselves.
Differences are to plain training stopped at its best. `cost` is the compute of an epoch beside
plain training's.
"""
BASELINE = "plain"


def general_loss(row: dict[str, Any]) -> float:
    """Of general text, by the best weights."""
    return known("best", "general_loss")(row)


def at_share(share: str, measure: str) -> Measure:
    """Of the weights that lie a share of the way from the base to the best ones."""
    return known("best", measure) if share == "1" else known("between", share, measure)


def best_share(place: Place, runs: ArmRuns) -> str:
    """The share with the lowest loss on the tuning slice, by the setting that the arm chose.

    1 where no others are scored, or not yet.
    """
    tuning = [
        row
        for row in place.tuning.get(runs.arm.name, ())
        if row["chosen"] == runs.chosen and "between" in row
    ]
    if not tuning:
        return "1"
    shares = ["1", *tuning[0]["between"]]
    return min(shares, key=lambda share: at_share(share, "domain_loss")(tuning[0]))


def cost_of(runs: ArmRuns) -> float:
    """Compute of an epoch; replayed tokens are computed, too."""
    return runs.arm.passes / (1 - float(runs.chosen.get("replay.share", 0.0)))


def tradeoff_table(place: Place) -> str:
    """Best losses and what is left of the base's knowledge, beside plain training's."""
    plain = place.arms[BASELINE]
    head = ["arm", "setting", "seeds", "best", "epoch of best", "best − plain"]
    head += ["general", "general − plain", "at share", "best − plain", "general", "final − plain"]
    rows = []
    for runs in place.arms.values():
        share = best_share(place, runs)
        between = at_share(share, "domain_loss")
        rows.append(
            [
                runs.arm.label,
                setting_of(runs),
                str(len(runs.rows)),
                number(runs.mean(best_loss)),
                number(runs.mean(best_epoch), digits=1),
                "" if runs is plain else difference(runs.minus(plain, best_loss)),
                number(runs.mean(general_loss)),
                "" if runs is plain else difference(runs.minus(plain, general_loss)),
                share,
                difference(against(runs, between, plain, known("best", "domain_loss"))),
                number(runs.mean(at_share(share, "general_loss"))),
                "" if runs is plain else difference(runs.minus(plain, final_loss)),
                f"{cost_of(runs):.2f}",
            ]
        )
    return markdown([*head, "cost"], rows)


def against(runs: ArmRuns, measure: Measure, plain: ArmRuns, of_plain: Measure) -> Interval | None:
    """As `ArmRuns.minus`, with a measure of each."""
    seeds = sorted(runs.rows.keys() & plain.rows.keys())
    if not seeds:
        return None
    return mean_interval([measure(runs.rows[s]) - of_plain(plain.rows[s]) for s in seeds])
