"""The tables of the evidence are those of the rows that the repository carries."""

from __future__ import annotations

from benchmarks.study.results import read_results
from benchmarks.study.settings import SETTINGS
from tests.docs.markdown import REPO_ROOT, load_script

_MEND = "run: python -m docs.generate_evidence_tables"


def test_tables_are_those_of_the_rows() -> None:
    script = load_script("generate_evidence_tables")
    for name, text in script.pages().items():
        assert (REPO_ROOT / "docs" / name).read_text(encoding="utf-8") == text, (name, _MEND)


def test_rows_of_the_second_round_are_of_the_settings_as_they_are() -> None:
    script = load_script("generate_evidence_tables")
    for name, setting in script.SECOND_ROUND.items():
        for row in read_results(REPO_ROOT / "benchmarks" / "study" / name):
            assert row["setting"] == SETTINGS[setting].identity(row["domain"]), (name, row["key"])
