"""The report of a study: what was run, tables and pictures, all from the results file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.study import tables, tradeoff
from benchmarks.study.comparison import Place, best_loss, final_loss, places_of
from benchmarks.study.pictures import draw_bands, draw_curves, draw_differences, draw_knowledge
from benchmarks.study.results import Row
from benchmarks.study.spread import draw_spread
from benchmarks.study.tradeoff_picture import draw_tradeoff

_OF_REGULARISERS = {
    "curves": draw_curves,
    "bands": draw_bands,
    "differences": draw_differences,
    "knowledge": draw_knowledge,
    "spread": draw_spread,
}
_OF_LEVERS = {"tradeoff": draw_tradeoff}


def write_report(rows: Sequence[Row], *, out: Path) -> Path:
    """Write report.md and its pictures.

    Raises:
        ValueError: when no reported run has finished.
    """
    places = [place for place in places_of(rows) if place.arms]
    if not places:
        raise ValueError("report: no reported run has finished yet")
    of_levers = [place for place in places if tradeoff.BASELINE in place.arms]
    out.mkdir(parents=True, exist_ok=True)
    pictures = _OF_LEVERS if of_levers else _OF_REGULARISERS
    for name, draw in pictures.items():
        draw(of_levers or places, out / f"evidence_{name}.png")
    parts = ["# Study\n", tables.counts(rows), tables.LEGEND]
    parts += [tradeoff.LEGEND] if of_levers else []
    parts += [f"![{name}](evidence_{name}.png)\n" for name in pictures]
    for place in places:
        parts += [f"## {place.domain}, {place.size} parameters\n", place_tables(place)]
    path = out / "report.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def place_tables(place: Place) -> str:
    """All tables of a place, by the question that its arms answer."""
    if tradeoff.BASELINE in place.arms:
        losses = tradeoff.tradeoff_table(place)
        return tables.tables_of_place(place, losses=losses, tuned_by=best_loss)
    return tables.tables_of_place(place, losses=tables.losses_table(place), tuned_by=final_loss)
