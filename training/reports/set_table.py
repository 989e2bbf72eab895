"""The table of a report on held-out sets: what was learnt of each, and what was forgotten."""

from __future__ import annotations

from functools import partial

from training.metrics.heldout_rows import losses_by_set
from training.reports.curves import RunCurves
from training.reports.groups import RunGroup
from training.reports.tables import Table, nats

ABOUT = (
    "Means over seeds, in nats per token. Forgetting is the loss minus that of the same set before "
    "the first step: below 0 it was learnt, above 0 forgotten. Best is the evaluation whose "
    "held-out loss, as evaluation.best_by chooses it, is the lowest of the run."
)


def set_table(groups: list[RunGroup]) -> Table:
    """A row for each group and held-out set; empty where no run was evaluated at its start."""
    heads = ["group", "set", "before", "at best", "forgetting", "final", "forgetting"]
    rows = []
    for group in groups:
        for name in group.set_names:
            first, best, final = (
                group.mean(partial(_loss, name=name, when=when))
                for when in ("first", "best", "final")
            )
            if first is not None:
                shown = [nats(first), nats(best), _change(best, first)]
                rows.append([group.name, name, *shown, nats(final), _change(final, first)])
    return Table(heads, rows)


def _loss(run: RunCurves, *, name: str, when: str) -> float | None:
    """Of a set; None for a run without it, or whose start was not evaluated."""
    if run.first_evaluation is None:
        return None
    rows = {"first": run.first_evaluation, "best": run.best_evaluation}
    loss = losses_by_set(rows.get(when, run.evaluations[-1]) or {}).get(name)
    return None if loss != loss else loss


def _change(loss: float | None, first: float) -> str:
    return "none" if loss is None else f"{loss - first:+.4f}"
