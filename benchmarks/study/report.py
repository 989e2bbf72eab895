"""The report of a study: what was run, tables and pictures, all of it out of the results file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.comparison import Place, places_of
from benchmarks.study.jobs import BASE_ARM
from benchmarks.study.pictures import draw_bands, draw_curves, draw_differences, draw_knowledge
from benchmarks.study.results import Row
from benchmarks.study.settings import TUNING_SEED
from benchmarks.study.spread import draw_spread
from benchmarks.study.tables import bands_table, knowledge_table, losses_table, tuning_table

LEGEND = """\
Losses are nats a token on held-out text of the domain. `final` is after the last epoch, `best` the
least of all evaluations. ± is the half of a 95% interval of Student's t over seeds; a seed has a
slice of its own; the held-out text and the base model are the same for all, so that intervals do
not say how another text would do. Differences are paired by seed and bold where the interval
excludes 0; of many such intervals some do so by chance.
"""


def write_report(rows: Sequence[Row], *, out: Path) -> Path:
    """Write report.md and its pictures.

    Raises:
        ValueError: when no run that is to be reported has finished.
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
        parts.append(of_place(place))
    path = out / "report.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def counts(rows: Sequence[Row]) -> str:
    """How many runs there are, of which kind, and what they cost."""
    trained = [row for row in rows if row["arm"] != BASE_ARM]
    tuning = sum(row["seed"] == TUNING_SEED for row in trained)
    hours = sum(row["cpu_seconds"] for row in trained) / 3600
    return (
        f"{len(trained)} runs: {tuning} that tuned settings, {len(trained) - tuning} reported; "
        f"at least {hours:.1f} core hours (of a killed run, those since its last start).\n"
    )


def of_place(place: Place) -> str:
    """All tables of one model size and domain."""
    return "\n".join(
        [
            f"## {place.domain}, {place.size} parameters\n",
            losses_table(place),
            "By band of the base model's entropies on the held-out text, lowest first:\n",
            bands_table(place),
            "Forgetting, completed words, canaries:\n",
            knowledge_table(place),
            "Tries on the tuning slice:\n",
            tuning_table(place),
        ]
    )
