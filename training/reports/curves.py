"""The series, final numbers and state of runs, read from their folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from training.config.load import KEPT_RECIPE
from training.metrics.file import METRICS_FILE, read_metrics
from training.metrics.heldout_rows import losses_by_set
from training.metrics.overfit_warning import OverfitWarning, OverfitWatch
from training.metrics.task_results import read_results
from training.ranks.run_state import RUN_STATE_FILE, RunState, read_run_state


@dataclass(frozen=True)
class RunCurves:
    """Rows of a run by kind, in the order of steps."""

    name: str
    facts: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    recipe_yaml: str
    recipe: dict[str, Any]
    """The resolved recipe as plain data, empty when it is missing."""
    state: RunState | None
    warnings: tuple[tuple[float, OverfitWarning], ...]
    """Each warning of a rise of held-out loss, with its epoch."""
    task_results: list[dict[str, Any]]
    """Of `evaluate --tasks`, by step."""
    is_torn: bool
    """Whether the last line of its metrics is truncated."""

    @property
    def seed(self) -> int | None:
        """Of the recipe."""
        return self.recipe.get("seed")

    @property
    def is_finished(self) -> bool:
        """Whether the run reached the last step of its plan."""
        if self.state is not None:
            return self.state.state == "complete"
        return self.steps[-1]["step"] >= self.facts.get("total_steps", 0)

    def step_series(self, key: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a key of the step rows; NaN, a gap in the curve, for null."""
        return _series(self.steps, key)

    def heldout_series(self) -> tuple[list[float], list[float]]:
        """Epochs and held-out losses."""
        return _series(self.evaluations, "loss")

    def band_series(self, band: int) -> tuple[list[float], list[float]]:
        """Epochs and held-out losses of one band, counted from 1."""
        rows = [
            {"epoch": row["epoch"], "loss": found["loss"]}
            for row in self.evaluations
            for found in row.get("bands", [])
            if found["band"] == band
        ]
        return _series(rows, "loss")

    def set_series(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and losses of one held-out set."""
        found = [(row, losses_by_set(row)) for row in self.evaluations]
        return _series([row | {"loss": losses.get(name)} for row, losses in found], "loss")

    @property
    def set_names(self) -> list[str]:
        """Of the held-out sets, in the order of the recipe."""
        return list(losses_by_set(self.evaluations[-1])) if self.evaluations else []

    @property
    def first_evaluation(self) -> dict[str, Any] | None:
        """That before the first step."""
        return next((row for row in self.evaluations if row["step"] == 0), None)

    @property
    def bands(self) -> list[dict[str, Any]]:
        """Number and edges of the bands, lowest entropy first."""
        return self.evaluations[-1].get("bands", []) if self.evaluations else []

    @property
    def best_evaluation(self) -> dict[str, Any] | None:
        """The evaluation with the lowest held-out loss."""
        measured = [row for row in self.evaluations if row.get("loss") is not None]
        return min(measured, key=lambda row: row["loss"]) if measured else None

    @property
    def best_loss(self) -> float | None:
        """Lowest held-out loss."""
        return self.best_evaluation["loss"] if self.best_evaluation else None

    @property
    def final_loss(self) -> float | None:
        """Held-out loss of the last evaluation."""
        return self.evaluations[-1].get("loss") if self.evaluations else None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the steps, so that a slow first step does not count."""
        return self._median_of("tokens_per_second")

    @property
    def utilisation(self) -> tuple[float, float] | None:
        """MFU and HFU, likewise; None where the peak of the run's GPUs is not known."""
        mfu, hfu = self._median_of("mfu"), self._median_of("hfu")
        return None if mfu is None or hfu is None else (mfu, hfu)

    def _median_of(self, key: str) -> float | None:
        values = [row[key] for row in self.steps if row.get(key)]
        return median(values) if values else None

    @property
    def mean_drop_rate(self) -> float | None:
        """Dropped targets / targets over the run, all steps counting alike."""
        rates = [row["drop_rate_realised"] for row in self.steps if "drop_rate_realised" in row]
        rates = [rate for rate in rates if rate is not None]
        return sum(rates) / len(rates) if rates else None

    @property
    def notes(self) -> list[str]:
        """What a reader of the curves must know: an unfinished run, a truncated file."""
        notes = [] if self.is_finished else [self._why_unfinished()]
        if self.is_torn:
            notes.append(f"the last line of its {METRICS_FILE} is truncated and ignored")
        return notes

    def _why_unfinished(self) -> str:
        total = self.state.total_steps if self.state else self.facts.get("total_steps")
        where = f"not finished: step {self.steps[-1]['step']:,} of {total:,}"
        if self.state is None or self.state.state == "running":
            return f"{where}; still running, or killed"
        return f"{where}; {self.state.state}: {self.state.reason}"


def load_runs(run_dirs: Sequence[Path]) -> list[RunCurves]:
    """Read several runs and give each a name of its own.

    A folder of runs, such as a sweep's, stands for all of them that have begun.

    Raises:
        ValueError: with every folder that has no metrics or no finished step, or is named twice.
    """
    if not run_dirs:
        raise ValueError("name at least one run folder")
    found, mistakes = _expand(run_dirs)
    if len(set(found)) < len(found):
        mistakes.append(f"a run folder is named twice: {', '.join(map(str, run_dirs))}")
    names = [path.name for path in found]
    runs = []
    for path in dict.fromkeys(found):
        try:
            name = path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}"
            runs.append(_load_run(path, name=name))
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return runs


def _expand(run_dirs: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Run folders, those in folders of runs among them, and what is wrong with the rest."""
    found, mistakes = [], []
    for run_dir in map(Path.resolve, run_dirs):
        metrics = sorted(run_dir.glob(f"*/{METRICS_FILE}"))
        if (run_dir / METRICS_FILE).exists() or not metrics:
            found.append(run_dir)
        elif begun := [path.parent for path in metrics if _has_a_step(path)]:
            found += begun
        else:
            mistakes.append(f"{run_dir}: none of its {len(metrics)} runs has a training step yet")
    return found, mistakes


def _has_a_step(path: Path) -> bool:
    return any(row["kind"] == "step" for row in read_metrics(path))


def _load_run(run_dir: Path, *, name: str) -> RunCurves:
    path = run_dir / METRICS_FILE
    rows = read_metrics(path)
    steps = [row for row in rows if row["kind"] == "step"]
    if not steps:
        raise ValueError(f"{path} holds no training step yet; train the run first")
    facts = next((row for row in rows if row["kind"] == "run"), {})
    recipe = run_dir / KEPT_RECIPE
    recipe_yaml = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    watch = OverfitWatch()
    said = [(row, watch.saw(row)) for row in rows]
    return RunCurves(
        name=name,
        facts={key: value for key, value in facts.items() if key not in ("kind", "step")},
        steps=steps,
        evaluations=[row for row in rows if row["kind"] == "evaluation"],
        recipe_yaml=recipe_yaml,
        recipe=_as_mapping(recipe_yaml, recipe),
        state=read_run_state(run_dir) if (run_dir / RUN_STATE_FILE).exists() else None,
        warnings=tuple((row["epoch"], warning) for row, warning in said if warning),
        task_results=read_results(run_dir),
        is_torn=not path.read_bytes().endswith(b"\n"),
    )


def _as_mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe")
    return content


def _series(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    epochs = [float(row["epoch"]) for row in rows]
    values = [math.nan if row.get(key) is None else float(row[key]) for row in rows]
    return epochs, values
