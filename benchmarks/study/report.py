"""The report of a study: what was run, tables and pictures, all from the results file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.comparison import places_of
from benchmarks.study.pictures import draw_bands, draw_curves, draw_differences, draw_knowledge
from benchmarks.study.results import Row
from benchmarks.study.spread import draw_spread
from benchmarks.study.tables import LEGEND, counts, tables_of_place


def write_report(rows: Sequence[Row], *, out: Path) -> Path:
    """Write report.md and its pictures.

    Raises:
        ValueError: when no reported run has finished.
    """
    places = [place for place in places_of(rows) if place.arms]
    if not places:
        raise ValueError("report: no reported run has finished yet")
    out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "curves": draw_curves,
        "bands": draw_bands,
        "differences": draw_differences,
        "knowledge": draw_knowledge,
        "spread": draw_spread,
    }
    for name, draw in pictures.items():
        draw(places, out / f"evidence_{name}.png")
    parts = ["# Study\n", counts(rows), LEGEND]
    parts += [f"![{name}](evidence_{name}.png)\n" for name in pictures]
    for place in places:
        title = f"## {place.domain}, {place.size} parameters\n"
        parts += [title, tables_of_place(place)]
    path = out / "report.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path
