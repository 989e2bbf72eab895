"""Write docs/evidence_tables.md, and the tables in the evidence pages, from the study's results."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.study import tradeoff
from benchmarks.study.comparison import Place, places_of
from benchmarks.study.report import place_tables
from benchmarks.study.results import Row, read_results
from benchmarks.study.settings import FULL, LEVERS, READY, SETTINGS, Setting
from benchmarks.study.summary import equal_compute_table, general_table, places_table, summary_table
from benchmarks.study.tables import LEGEND, counts

DOCS = Path(__file__).resolve().parent
_FEWEST_IN_SHORT, _FEWEST = 4, 2
"""Of the places an arm must have been run in, to be in the table of a page."""
_FIRST_ROUND = {
    "results.jsonl": "first base",
    "results_second_base.jsonl": "second base",
    "results_ready.jsonl": "ready base",
}
SECOND_ROUND = {
    "results_levers.jsonl": "levers",
    "results_licences.jsonl": "licences",
    "results_levers_40k.jsonl": "levers_40k",
    "results_levers_160k.jsonl": "levers_160k",
    "results_ready_levers.jsonl": "ready_levers",
    "results_scratch.jsonl": "scratch",
}
"""By file, the setting of its runs."""
_MARK = "<!-- from the rows of the study -->\n"
_HEAD = f"""\
# Evidence: all tables

Written by `python -m docs.generate_evidence_tables` from the rows in `benchmarks/study/`;
[evidence.md](evidence.md) says what they mean and how they were measured. `setting` is what tuning
chose, or what was taken from the arm that an arm varies. `exposure` is how high a trained secret
ranks among {FULL.num_canary_rivals} that were not trained on:
{math.log2(FULL.num_canary_rivals + 1):g} bits is the top (of the ready base among
{READY.num_canary_rivals}: {math.log2(READY.num_canary_rivals + 1):g}).

"""


def pages() -> dict[str, str]:
    """The evidence pages by name, their tables renewed.

    Raises:
        FileNotFoundError: for rows that are not there.
    """
    places = {
        _title(place, SETTINGS[setting]): place
        for name, setting in SECOND_ROUND.items()
        for place in places_of(_rows(name))
        if tradeoff.BASELINE in place.arms and SETTINGS[setting].question != "scratch"
    }
    tables = {
        "evidence.md": summary_table(places, fewest=_FEWEST_IN_SHORT),
        "evidence_second_round.md": f"""\
{places_table(places)}
{summary_table(places, fewest=_FEWEST)}
{general_table(places, fewest=_FEWEST)}
{equal_compute_table(places, fewest=_FEWEST)}""",
    }
    return {name: _renewed(name, table) for name, table in tables.items()} | {
        "evidence_tables.md": _all_tables()
    }


def _renewed(name: str, table: str) -> str:
    before, _, after = (DOCS / name).read_text(encoding="utf-8").split(_MARK)
    return _MARK.join([before, f"\n{table}\n", after])


def _title(place: Place, setting: Setting) -> str:
    size = "" if place.size == LEVERS.sizes[0].name else f", {place.size}"
    return f"{place.domain}, {setting.slice_tokens // 1000}k{size}"


def _all_tables() -> str:
    parts = [_HEAD + LEGEND]
    titles = {name: f"second round, {setting}" for name, setting in SECOND_ROUND.items()}
    for name, base in (_FIRST_ROUND | titles).items():
        rows = _rows(name)
        parts.append(f"The {base}, `benchmarks/study/{name}`: {counts(rows)}")
        if any(tradeoff.BASELINE in place.arms for place in places_of(rows)):
            parts.append(tradeoff.LEGEND)
        for place in places_of(rows):
            if place.arms:
                title = f"## {place.domain}, {place.size} parameters, {base}\n"
                parts += [title, place_tables(place)]
    return "\n".join(parts)


def _rows(name: str) -> list[Row]:
    path = DOCS.parent / "benchmarks" / "study" / name
    if not path.exists():
        raise FileNotFoundError(path)
    return read_results(path)


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"docs/{name}")
