"""Write docs/evidence_tables.md from the study results in the repository."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.study.comparison import final_loss, places_of
from benchmarks.study.results import read_results
from benchmarks.study.settings import FULL, READY
from benchmarks.study.tables import LEGEND, counts, losses_table, tables_of_place

REPO_ROOT = Path(__file__).resolve().parents[1]
_FILES = {
    "results.jsonl": "first base",
    "results_second_base.jsonl": "second base",
    "results_ready.jsonl": "ready base",
}
_HEAD = f"""\
# Evidence: all tables

Written by `python -m docs.generate_evidence_tables` from the rows in `benchmarks/study/`;
[evidence.md](evidence.md) says what they mean and how they were measured. `setting` is what tuning
chose, or what was taken from the arm that an arm varies. `exposure` is how high a trained secret
ranks among {FULL.num_canary_rivals} that were not trained on:
{math.log2(FULL.num_canary_rivals + 1):g} bits is the top (of the ready base among
{READY.num_canary_rivals}: {math.log2(READY.num_canary_rivals + 1):g}).

"""


def page() -> str:
    """The whole page.

    Raises:
        FileNotFoundError: for rows that are not there.
    """
    parts = [_HEAD + LEGEND]
    for name, base in _FILES.items():
        path = REPO_ROOT / "benchmarks" / "study" / name
        if not path.exists():
            raise FileNotFoundError(path)
        rows = read_results(path)
        parts.append(f"The {base}, `benchmarks/study/{name}`: {counts(rows)}")
        for place in places_of(rows):
            if place.arms:
                title = f"## {place.domain}, {place.size} parameters, {base}\n"
                losses = losses_table(place)
                parts += [title, tables_of_place(place, losses=losses, tuned_by=final_loss)]
    return "\n".join(parts)


if __name__ == "__main__":
    path = REPO_ROOT / "docs" / "evidence_tables.md"
    path.write_text(page(), encoding="utf-8")
    print(path.relative_to(REPO_ROOT))
