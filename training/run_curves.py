"""The series and final numbers of one run, out of its metrics.jsonl."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from training.metrics_file import METRICS_FILE, read_metrics


@dataclass(frozen=True)
class RunCurves:
    """Rows of a run by kind, in the order of steps."""

    name: str
    facts: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    recipe_yaml: str

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
    def tokens_per_second(self) -> float | None:
        """Median over the steps, so that a slow first step does not count."""
        speeds = [row["tokens_per_second"] for row in self.steps if row.get("tokens_per_second")]
        return median(speeds) if speeds else None

    @property
    def mean_drop_rate(self) -> float | None:
        """Dropped targets / targets over the run, all steps counting alike."""
        rates = [row["drop_rate_realised"] for row in self.steps if "drop_rate_realised" in row]
        rates = [rate for rate in rates if rate is not None]
        return sum(rates) / len(rates) if rates else None


def load_runs(run_dirs: list[Path]) -> list[RunCurves]:
    """Read several runs and give each a name of its own.

    Raises:
        ValueError: when a folder holds no metrics or no finished step, or is named twice.
    """
    resolved = [run_dir.resolve() for run_dir in run_dirs]
    if not resolved:
        raise ValueError("name at least one run folder")
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"a run folder is named twice: {', '.join(map(str, run_dirs))}")
    names = [path.name for path in resolved]
    return [
        _load_run(path, name=path.name if names.count(path.name) == 1 else _long_name(path))
        for path in resolved
    ]


def _load_run(run_dir: Path, *, name: str) -> RunCurves:
    path = run_dir / METRICS_FILE
    rows = read_metrics(path)
    steps = [row for row in rows if row["kind"] == "step"]
    if not steps:
        raise ValueError(f"{path} holds no training step yet; train the run first")
    facts = next((row for row in rows if row["kind"] == "run"), {})
    recipe = run_dir / "recipe.resolved.yaml"
    return RunCurves(
        name=name,
        facts={key: value for key, value in facts.items() if key not in ("kind", "step")},
        steps=steps,
        evaluations=[row for row in rows if row["kind"] == "evaluation"],
        recipe_yaml=recipe.read_text(encoding="utf-8") if recipe.exists() else "",
    )


def _long_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _series(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    epochs = [float(row["epoch"]) for row in rows]
    values = [math.nan if row.get(key) is None else float(row[key]) for row in rows]
    return epochs, values
