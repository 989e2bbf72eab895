"""Write docs/evidence_tables.md from the rows of the study that the repository carries."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.comparison import places_of
from benchmarks.study.report import LEGEND, counts, of_place
from benchmarks.study.results import read_results

REPO_ROOT = Path(__file__).resolve().parents[1]
_FILES = {
    "results.jsonl": "From the first base",
    "results_second_base.jsonl": "From the second base",
}
_HEAD = """\
# Evidence: all tables

Written by `python -m docs.generate_evidence_tables` from the rows in `benchmarks/study/`;
[evidence.md](evidence.md) says what they mean and how they came about. `setting` is what tuning
chose, or what was taken over from the arm that an arm varies. `exposure` is how far up a secret
that was trained on stands among 63 that were not: 6 bits is the top.

"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD + LEGEND]
    for name, title in _FILES.items():
        rows = read_results(REPO_ROOT / "benchmarks" / "study" / name)
        parts += [f"# {title}\n", f"`benchmarks/study/{name}`: {counts(rows)}"]
        parts += [of_place(place) for place in places_of(rows) if place.arms]
    return "\n".join(parts)


if __name__ == "__main__":
    path = REPO_ROOT / "docs" / "evidence_tables.md"
    path.write_text(page(), encoding="utf-8")
    print(path.relative_to(REPO_ROOT))
