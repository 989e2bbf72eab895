"""Early warning of overfitting: held-out loss rises in some band while training loss falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from training.config.heldout import WEIGHTED

_NUM_RISES = 2
_LEAST_RISE = 0.005
"""Share of the best loss: smaller rises are noise of the held-out split."""


@dataclass(frozen=True)
class OverfitWarning:
    """What rises, and where the run was best."""

    names: tuple[str, ...]
    """`all` and `band <n>`, of the series that rise."""
    best_step: int
    best_loss: float
    latest_loss: float
    best_by: str | None = None
    """The held-out set whose loss it is, or `weighted`; None where there is but one."""

    @property
    def kind(self) -> str:
        """What a rise from the start on means is not that the model learnt too much by heart."""
        return "overfitting" if self.best_step else "forgetting or too high a learning rate"

    @property
    def finding(self) -> str:
        """What was seen, without what it means."""
        loss, names = _loss_of(self.best_by), ", ".join(self.names)
        change = f"({self.best_loss:.4f}, now {self.latest_loss:.4f})"
        if not self.best_step:
            return (
                f"{loss} ({names}) rises from what it was before training {change} while the "
                "training loss falls"
            )
        return (
            f"{loss} rises ({names}) while the training loss falls; it was best at step "
            f"{self.best_step} {change}"
        )

    def __str__(self) -> str:
        return f"{self.kind}: {self.finding}"


class OverfitWatch:
    """Follows the rows of metrics.jsonl and gives each warning once."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._evaluations: list[dict[str, Any]] = []
        self._reported: tuple[int, tuple[str, ...]] | None = None

    def saw(self, row: dict[str, Any]) -> OverfitWarning | None:
        """Take a row, in the order of the file; returns a warning, if it is new."""
        if row["kind"] == "step" and row.get("loss") is not None:
            self._losses.append(row["loss"])
        if row["kind"] != "evaluation" or row.get("loss") is None:
            return None
        mean = fmean(self._losses) if self._losses else None
        self._evaluations.append(row | {"train_loss": mean})
        self._losses = []
        warning = find_overfitting(self._evaluations)
        if warning is None or self._reported == (warning.best_step, warning.names):
            return None
        self._reported = (warning.best_step, warning.names)
        return warning


def find_overfitting(evaluations: Sequence[dict[str, Any]]) -> OverfitWarning | None:
    """Look at a run's evaluations so far, oldest first.

    A series rises when its last two evaluations lie half a percent above its best one and do not
    come down. The training loss is taken at the evaluations. Only evaluations with the bands of the
    last one are looked at: others are of other tokens, as of before a change of
    `evaluation.best_by`.

    Args:
        evaluations: rows with `step`, `loss`, `bands` (each with `band` and `loss`) and
            `train_loss`, the mean of the training loss since the evaluation before. Rows of a
            weighted loss have no bands, those of a run with one set no `best_by`.
    """
    evaluations = [row for row in evaluations if _bands_of(row) == _bands_of(evaluations[-1])]
    if len(evaluations) < _NUM_RISES + 2:
        return None
    training = [row["train_loss"] for row in evaluations if row.get("train_loss") is not None]
    if len(training) < 2 or training[-1] >= training[0]:
        return None
    names = ["all"] if _rises([row["loss"] for row in evaluations]) else []
    for number in range(len(evaluations[-1].get("bands", []))):
        series = [row["bands"][number]["loss"] for row in evaluations]
        if _rises(series):
            names.append(f"band {evaluations[-1]['bands'][number]['band']}")
    if not names:
        return None
    best = min(evaluations, key=lambda row: row["loss"])
    last = evaluations[-1]
    return OverfitWarning(
        tuple(names), best["step"], best["loss"], last["loss"], best_by=last.get("best_by")
    )


def _loss_of(best_by: str | None) -> str:
    if best_by is None:
        return "held-out loss"
    return "weighted held-out loss" if best_by == WEIGHTED else f"held-out loss of {best_by}"


def _bands_of(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Which they are: number and edges, without losses."""
    bands = row.get("bands") or []
    return [(band["band"], band.get("from_nats"), band.get("to_nats")) for band in bands]


def _rises(series: list[float | None]) -> bool:
    known = [value for value in series if value is not None]
    if len(known) < _NUM_RISES + 1:
        return False
    best = min(known[:-_NUM_RISES])
    latest = known[-_NUM_RISES:]
    return all(value > best * (1 + _LEAST_RISE) for value in latest) and latest == sorted(latest)
