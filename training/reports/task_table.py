"""The table of benchmarks: results of `evaluate --tasks`, group by group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from training.reports.compare import Measure, choose_baseline, compare, mean_over_seeds
from training.reports.curves import RunCurves
from training.reports.groups import RunGroup
from training.reports.tables import Table


class Score(NamedTuple):
    """What must be the same for two numbers to be compared."""

    task: str
    metric: str
    num_fewshot: int | None
    limit: int | None
    """Of the documents of each task; None for all."""
    documents: str | None
    """Hash of documents, prompts and answers; None for a group of tasks."""


def task_table(groups: list[RunGroup]) -> Table:
    """One row per score, the mean of each group, and differences from the baseline by seed.

    If a run has the same score twice, the later step counts. Empty without results.
    """
    baseline = choose_baseline(groups)
    others = [group for group in groups if group is not baseline]
    runs = [run for group in groups for run in group.runs]
    found = dict.fromkeys(score for run in runs for score in scores_of(run))
    rows = []
    for score in sorted(found, key=lambda score: (score.task, score.metric, repr(score))):
        measure = _measure(score)
        rows.append(
            [
                score.task,
                score.metric,
                "" if score.num_fewshot is None else str(score.num_fewshot),
                "all" if score.limit is None else f"first {score.limit:,}",
                *(_mean(group, measure) for group in groups),
                *(_difference(group, baseline, measure) for group in others),
            ]
        )
    names = [group.name for group in groups] if others else ["score"]
    differences = [f"{group.name} − {baseline.name}, 95%" for group in others]
    return Table(["task", "metric", "examples", "documents", *names, *differences], rows)


def scores_of(run: RunCurves) -> dict[Score, float]:
    """Every number that the harness gave for a run, without the standard errors."""
    scores: dict[Score, float] = {}
    for result in run.task_results:  # by step, so that the later one stays
        for task, key, value in _numbers(result):
            scores[
                Score(
                    task=task,
                    metric=key.replace(",none", "").replace(",", ", "),
                    num_fewshot=result["num_fewshot"].get(task),
                    limit=result["settings"]["limit"],
                    documents=result["task_hashes"].get(task),
                )
            ] = value
    return scores


def _numbers(result: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    for task, row in (result["results"] | result["groups"]).items():
        for key, value in row.items():
            if value is not None and "_stderr," not in key:
                yield task, key, value


def _measure(score: Score) -> Measure:
    return lambda run: scores_of(run).get(score)


def _mean(group: RunGroup, measure: Measure) -> str:
    found = mean_over_seeds(group, measure)
    if found is None:
        return "none"
    mean, half_width = found
    return f"{mean:.4f}" if half_width is None else f"{mean:.4f} ± {half_width:.4f}"


def _difference(group: RunGroup, baseline: RunGroup, measure: Measure) -> str:
    difference = compare(group, baseline, measure)
    if difference is None:
        return "none"
    if difference.half_width is None:
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
