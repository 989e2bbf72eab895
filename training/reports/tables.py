"""The tables of a report as plain text, for its page and for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from training.reports.compare import (
    Difference,
    Measure,
    are_measured_alike,
    choose_baseline,
    compare,
    mean_over_seeds,
    unfinished,
)
from training.reports.curves import RunCurves
from training.reports.groups import RunGroup, differing_settings

MEASURES: dict[str, Measure] = {
    "final": lambda run: run.final_loss,
    "best": lambda run: run.best_loss,
}


@dataclass(frozen=True)
class Table:
    """Heads of the columns, and the cells of each row."""

    heads: list[str]
    rows: list[list[str]]

    def as_text(self) -> str:
        """Aligned for a terminal."""
        lines = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def comparison_table(groups: list[RunGroup]) -> Table:
    """Best and final held-out loss of each group, and how far it is from the baseline."""
    baseline = choose_baseline(groups)
    heads = ["group", "seeds"]
    for name in MEASURES:
        heads += [f"{name} held-out", f"{name}: difference, 95%", f"{name}: verdict"]
    rows = []
    for group in groups:
        row = [group.name, _seeds(group)]
        for measure in MEASURES.values():
            row += [_mean(group, measure), *_difference_cells(group, baseline, measure)]
        rows.append(row)
    return Table(heads, rows)


def verdicts(groups: list[RunGroup]) -> list[str]:
    """A sentence for each group but the baseline, lowest final loss first."""
    baseline = choose_baseline(groups)
    said = []
    for group in groups:
        found = {name: compare(group, baseline, measure) for name, measure in MEASURES.items()}
        if group is baseline or found["final"] is None:
            continue
        held_back = _held_back(group, baseline)
        parts = [
            f"{_sentence(name, difference)}: {held_back or difference.verdict}."
            for name, difference in found.items()
            if difference
        ]
        text = f"{group.name} against {baseline.name}. {' '.join(parts)}"
        said.append((found["final"].mean, text))
    return [text for _, text in sorted(said)]


def run_table(groups: list[RunGroup]) -> Table:
    """The numbers of each run."""
    columns: list[tuple[str, Callable[[RunCurves], str]]] = [
        ("run", lambda run: run.name),
        ("seed", lambda run: "none" if run.seed is None else str(run.seed)),
        ("best held-out", lambda run: nats(run.best_loss)),
        ("at epoch", lambda run: two_digits((run.best_evaluation or {}).get("epoch"))),
        ("final held-out", lambda run: nats(run.final_loss)),
        ("final training", lambda run: nats(run.steps[-1].get("loss"))),
        ("epochs", lambda run: two_digits(run.steps[-1]["epoch"])),
        ("tokens", lambda run: f"{run.steps[-1]['tokens']:,}"),
        ("drop asked", lambda run: percent(_mean_of(run, "drop_rate_asked"))),
        ("dropped", lambda run: percent(run.mean_drop_rate)),
        ("tokens/s", lambda run: whole(run.tokens_per_second)),
        ("seconds", lambda run: whole(sum(row.get("seconds") or 0.0 for row in run.steps))),
    ]
    runs = [run for group in groups for run in group.runs]
    return Table(
        [name for name, _ in columns], [[cell(run) for _, cell in columns] for run in runs]
    )


def band_table(groups: list[RunGroup]) -> Table:
    """Best and final held-out loss of each band: of one run in full, of groups side by side."""
    if len(groups) == 1 and len(groups[0].runs) == 1:
        return _bands_of_run(groups[0].runs[0])
    num_bands = max(len(group.bands) for group in groups)
    rows = []
    for group in groups:
        row = [group.name]
        for band in range(1, num_bands + 1):
            curve = group.band_curve(band)
            best = curve.best
            row.append(f"{nats(best[1])} to {nats(curve.mean[-1])}" if best else "none")
        rows.append(row)
    return Table(
        ["group", *(f"band {band}, best to final" for band in range(1, num_bands + 1))], rows
    )


def differences_table(groups: list[RunGroup]) -> Table:
    """The keys of the recipe in which groups differ."""
    found = differing_settings(groups)
    rows = [[key, *(_shown(value) for value in values)] for key, values in found.items()]
    return Table(["key", *(group.name for group in groups)], rows)


def _bands_of_run(run: RunCurves) -> Table:
    rows = []
    for band in run.bands:
        epochs, losses = run.band_series(band["band"])
        measured = [
            (loss, epoch) for epoch, loss in zip(epochs, losses, strict=True) if loss == loss
        ]
        best_loss, best_epoch = min(measured, default=(None, None))
        rows.append(
            [
                f"{band['band']}",
                f"{band['from_nats']:.4f} to {band['to_nats']:.4f}",
                f"{band['num_targets']:,}",
                nats(losses[0]),
                nats(best_loss),
                two_digits(best_epoch),
                nats(losses[-1]),
            ]
        )
    heads = ["band", "entropy at step 0, nats", "targets", "first", "best", "at epoch", "final"]
    return Table(heads, rows)


def _mean(group: RunGroup, measure: Measure) -> str:
    found = mean_over_seeds(group, measure)
    if found is None:
        return "none"
    mean, half_width = found
    return nats(mean) if half_width is None else f"{nats(mean)} ± {nats(half_width)}"


def _seeds(group: RunGroup) -> str:
    runs = len(group.runs)
    return f"{group.num_seeds}" + (f" ({runs} runs)" if runs > group.num_seeds else "")


def _difference_cells(group: RunGroup, baseline: RunGroup, measure: Measure) -> list[str]:
    if group is baseline:
        return ["baseline", ""]
    difference = compare(group, baseline, measure)
    if difference is None:
        return ["none", "not measured"]
    verdict = _held_back(group, baseline) or difference.verdict
    interval = f" ({difference.low:+.4f} to {difference.high:+.4f})"
    shown = f"{difference.mean:+.4f}{interval if difference.half_width is not None else ''}"
    return [
        shown,
        f"{verdict} ({difference.basis})" if difference.half_width is not None else verdict,
    ]


def _sentence(name: str, difference: Difference) -> str:
    side = "lower" if difference.mean < 0 else "higher"
    by = f"{abs(difference.mean):.4f} nats {side}" if difference.mean else "the same"
    text = f"{name.capitalize()} held-out loss {by}"
    if difference.half_width is not None:
        text += f" (95% interval of the difference {difference.low:+.4f} to {difference.high:+.4f}"
        text += f"; {difference.basis})"
    return text


def _mean_of(run: RunCurves, key: str) -> float | None:
    values = [row[key] for row in run.steps if row.get(key) is not None]
    return fmean(values) if values else None


def _held_back(group: RunGroup, baseline: RunGroup) -> str:
    """Why there is no verdict: other held-out samples, or unfinished runs."""
    if not are_measured_alike(group, baseline):
        return "not comparable, measured on other held-out samples"
    number = unfinished(group, baseline)
    return f"not final, {number} run{'s' if number > 1 else ''} unfinished" if number else ""


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def nats(value: float | None) -> str:
    """Four decimals."""
    return "none" if value is None or value != value else f"{value:.4f}"


def two_digits(value: float | None) -> str:
    """Two decimals."""
    return "none" if value is None else f"{value:.2f}"


def whole(value: float | None) -> str:
    """No decimals, thousands separated."""
    return "none" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """One decimal."""
    return "none" if value is None else f"{100 * value:.1f}%"
