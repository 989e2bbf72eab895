"""What a run's model said to the prompts of its evaluations, from the first to the last."""

from __future__ import annotations

from typing import Any

from training.reports.curves import RunCurves
from training.reports.html_page import fold, paragraph, preformatted, section

_MOST_EVALUATIONS = 6
_MOST_TITLE_CHARACTERS = 60
_ABOUT = (
    "The likeliest continuations of evaluation.prompts, behind ▸, with the weights of each step."
)


def continuations_section(runs: list[RunCurves]) -> str:
    """A part of a page; empty where no run had prompts."""
    folds = [part for run in runs for part in _of_run(run, names_run=len(runs) > 1)]
    if not folds:
        return ""
    about = paragraph(_ABOUT, kind="soft small")
    return section("What the model says", "".join(folds) + about)


def _of_run(run: RunCurves, *, names_run: bool) -> list[str]:
    rows = _spread([row for row in run.evaluations if row.get("continuations")])
    if not rows:
        return []
    folds = []
    for number, first in enumerate(rows[0]["continuations"]):
        prompt = first["prompt"]
        texts = [f"step {row['step']:,}\n{_shown(row, number)}" for row in rows]
        title = " ".join(prompt.split())[:_MOST_TITLE_CHARACTERS]
        title = f"{run.name}: {title}" if names_run else title
        folds.append(fold(title, preformatted("\n\n".join(texts))))
    return folds


def _shown(row: dict[str, Any], number: int) -> str:
    """A resume may have come with fewer prompts."""
    found = row["continuations"]
    return f"{found[number]['prompt']}▸{found[number]['text']}" if number < len(found) else "none"


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first, the last, and some evenly between: of 11 the numbers 0 2 4 6 8 10."""
    if len(rows) <= _MOST_EVALUATIONS:
        return rows
    last = len(rows) - 1
    return [rows[round(i * last / (_MOST_EVALUATIONS - 1))] for i in range(_MOST_EVALUATIONS)]
