"""A report of one or more runs: a self-contained index.html and its pictures as PNGs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.reports.continuations import continuations_section
from training.reports.curves import RunCurves, load_runs
from training.reports.groups import RunGroup, group_runs
from training.reports.html_page import (
    colour_key,
    fold,
    page,
    paragraph,
    picture,
    preformatted,
    section,
    table,
    tiles,
)
from training.reports.plots import panels_of
from training.reports.set_table import ABOUT, set_table
from training.reports.tables import (
    Table,
    band_table,
    comparison_table,
    differences_table,
    nats,
    run_table,
    verdicts,
    whole,
)
from training.reports.task_table import task_table
from training.reports.theme import DARK, LIGHT, as_png, draw_key, draw_panel, tiled

_NOISE_PERCENT = 0.5  # as in the overfitting warning: smaller rises are noise of the held-out split
_ABOUT_TASKS = (
    "Results of evaluate --tasks at the latest evaluated step. Whether higher is better depends on "
    "the metric. Rows of the same task differ in their options."
)
_MOST_NAMES = 4
_MOST_VERDICTS = 4
_ABOUT_THE_TABLE = (
    "Losses are means over seeds with 95% intervals by Student's t, in nats per token. Differences "
    "are taken seed by seed where both groups ran at least two seeds in common; below 0 the group "
    "is better than the baseline. A seed that was run twice counts once, by its mean. Means are "
    "over all seeds of a group, differences over those in common. Intervals are not corrected for "
    "multiple comparisons: among twenty equal groups one will look better or worse. The best loss "
    "of a run is the lowest of its evaluations, so it is slightly optimistic for every group."
)


def write_report(run_dirs: Sequence[Path], out_dir: Path) -> Path:
    """Draw the curves of runs and write a self-contained page.

    Runs that differ only by seed are drawn as one, a mean with a band.

    Returns:
        The page, `out_dir/index.html`; next to it each diagram as a PNG, and all as `report.png`.

    Raises:
        ValueError: when a run folder has no metrics.
    """
    groups = group_runs(load_runs(run_dirs))
    out_dir.mkdir(parents=True, exist_ok=True)
    out = out_dir / "index.html"
    out.write_text(page_of(groups, _draw(groups, out_dir)), encoding="utf-8")
    return out


def comparison_text(run_dirs: Sequence[Path]) -> str:
    """The table of a report and its verdicts, for a terminal."""
    groups = group_runs(load_runs(run_dirs))
    return "\n".join([comparison_table(groups).as_text(), "", *verdicts(groups)]).rstrip()


def page_of(groups: list[RunGroup], figures: Sequence[str]) -> str:
    """The page: verdicts, figures and numbers of the runs."""
    runs = [run for group in groups for run in group.runs]
    key = colour_key([group.name for group in groups]) if len(groups) > 1 else ""
    has_bands = any(group.bands for group in groups)
    parts = [
        paragraph(_subtitle(groups), kind="soft"),
        _summary(groups),
        _warnings(groups),
        _notes(runs),
        _comparison(groups) if len(runs) > 1 else "",
        section("", f'{key}<div class="pictures">{"".join(figures)}</div>'),
        section("Numbers of each run", table(run_table(groups))),
        _sets(groups),
        section("Held-out loss by entropy band", table(band_table(groups))) if has_bands else "",
        continuations_section(runs),
        _tasks(groups),
        _differences(groups) if len(groups) > 1 else "",
        section("The runs" if len(runs) > 1 else "The run", "".join(map(_facts, runs))),
    ]
    return page(_title(groups), parts)


def _draw(groups: list[RunGroup], out_dir: Path) -> list[str]:
    """Write every diagram as a PNG and all of them as one; the figures of the page."""
    panels = panels_of(groups)
    drawn = [draw_panel(groups, panel) for panel in panels]
    for theme, name in ((LIGHT, "report.png"), (DARK, "report_dark.png")):
        together = tiled([pictures[theme] for pictures in drawn], theme=theme, columns=2)
        if len(groups) > 1:
            key = tiled([draw_key(groups, theme=theme)], theme=theme, columns=2)
            together = np.concatenate([key, together])
        (out_dir / name).write_bytes(as_png(together))
    figures = []
    for panel, pictures in zip(panels, drawn, strict=True):
        on_light, on_dark = as_png(pictures[LIGHT]), as_png(pictures[DARK])
        (out_dir / f"{panel.name}.png").write_bytes(on_light)
        figures.append(picture(on_light, on_dark, title=panel.title, caption=panel.caption))
    return figures


def _title(groups: list[RunGroup]) -> str:
    names = [group.name for group in groups]
    return ", ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} groups of runs"


def _subtitle(groups: list[RunGroup]) -> str:
    runs = [run for group in groups for run in group.runs]
    if len(runs) == 1:
        return _verdict(runs[0]) + _verdict_on_average(runs[0])
    noun = "group" if len(groups) == 1 else "groups"
    return f"{len(runs)} runs in {len(groups)} {noun}; runs that differ only by seed are one group."


def _summary(groups: list[RunGroup]) -> str:
    runs = [run for group in groups for run in group.runs]
    if len(runs) == 1:
        return _tiles(runs[0])
    said = verdicts(groups)
    if not said:
        return ""
    more = len(said) - _MOST_VERDICTS
    lines = [paragraph(text) for text in said[:_MOST_VERDICTS]]
    if more > 0:
        lines.append(paragraph(f"The table has {more} more.", kind="soft"))
    return section("Which is better", "".join(lines), kind="verdict")


def _verdict(run: RunCurves) -> str:
    """What the held-out curve says, in one sentence."""
    best = run.best_evaluation
    if best is None:
        return "No held-out evaluation in this run."
    last = run.evaluations[-1]
    at_best = f"Held-out loss was lowest at epoch {best['epoch']:.2f}: {best['loss']:.4f} nats."
    if best is last:
        return at_best.replace("was lowest", "is lowest at the last evaluation,")
    if last.get("loss") is None:
        return at_best + " The last evaluation gave no finite number."
    rise = 100 * (last["loss"] / best["loss"] - 1) if best["loss"] else math.inf
    if rise < _NOISE_PERCENT:
        return at_best + f" Since then it has stayed within {rise:.2f}% of that."
    means = "the run overfits from there on" if best["step"] else "forgetting, or too high a rate"
    return at_best + f" Since then it has risen by {rise:.1f}%: {means}."


def _verdict_on_average(run: RunCurves) -> str:
    """The same of the averaged weights, for a run that keeps some (`ema`)."""
    averaged = [row for row in run.evaluations if row.get("ema_loss") is not None]
    if not averaged:
        return ""
    best = min(averaged, key=lambda row: row["ema_loss"])
    is_better = run.best_loss is None or best["ema_loss"] < run.best_loss
    hint = "; export them with --weights ema" if is_better else ", not below that"
    return (
        f" That of the averaged weights was lowest at epoch {best['epoch']:.2f}: "
        f"{best['ema_loss']:.4f} nats{hint}."
    )


def _tiles(run: RunCurves) -> str:
    best, last = run.best_evaluation, run.steps[-1]
    return tiles(
        [
            ("best held-out loss", nats(best["loss"]) if best else "none"),
            ("at epoch", f"{best['epoch']:.2f} of {last['epoch']:.2f}" if best else "none"),
            ("tokens trained", f"{last['tokens']:,}"),
            ("tokens per second, median", whole(run.tokens_per_second)),
            *([("MFU, HFU", "{:.1%}, {:.1%}".format(*use))] if (use := run.utilisation) else []),
        ]
    )


def _warnings(groups: list[RunGroup]) -> str:
    """Of each group, how many runs warned, when first, and what they last said; by what it was."""
    lines: dict[str, list[str]] = {}
    for group in groups:
        warned = [run for run in group.runs if run.warnings]
        if not warned:
            continue
        first = sorted(run.warnings[0][0] for run in warned)
        when = f"epoch {first[0]:.2f}"
        if first[-1] > first[0]:
            when += f" to {first[-1]:.2f}"
        who = f"{len(warned)} of {len(group.runs)} runs warned" if len(group.runs) > 1 else "warned"
        last = warned[0].warnings[-1][1]
        said = paragraph(f"{group.name}: {who} at {when}. {_sentence(last.finding)}.")
        lines.setdefault(_sentence(last.kind), []).append(said)
    return "".join(section(kind, "".join(said), kind="warn") for kind, said in lines.items())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _notes(runs: list[RunCurves]) -> str:
    lines = [paragraph(f"{run.name}: {note}.") for run in runs for note in run.notes]
    return section("Read with care", "".join(lines), kind="warn") if lines else ""


def _comparison(groups: list[RunGroup]) -> str:
    about = paragraph(_ABOUT_THE_TABLE, kind="soft small")
    return section("Comparison", table(comparison_table(groups)) + about)


def _sets(groups: list[RunGroup]) -> str:
    content = set_table(groups)
    if not content.rows:
        return ""
    return section("Learnt and forgotten", table(content) + paragraph(ABOUT, kind="soft small"))


def _tasks(groups: list[RunGroup]) -> str:
    content = task_table(groups)
    if not content.rows:
        return ""
    return section("Benchmarks", table(content) + paragraph(_ABOUT_TASKS, kind="soft small"))


def _differences(groups: list[RunGroup]) -> str:
    content = differences_table(groups)
    return section("Differences between the recipes", table(content)) if content.rows else ""


def _facts(run: RunCurves) -> str:
    rows = [[key.replace("_", " "), _fact(value)] for key, value in run.facts.items()]
    body = table(Table(["fact", "value"], rows), kind="facts")
    if run.recipe_yaml:
        body += fold("The resolved recipe", preformatted(run.recipe_yaml))
    return fold(run.name, body)


def _fact(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
