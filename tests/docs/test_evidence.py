"""The tables of the evidence are those of the rows that the repository carries."""

from __future__ import annotations

from tests.docs.markdown import REPO_ROOT, load_script


def test_tables_are_those_of_the_rows() -> None:
    written = (REPO_ROOT / "docs" / "evidence_tables.md").read_text(encoding="utf-8")
    expected = load_script("generate_evidence_tables").page()
    assert written == expected, "run: python -m docs.generate_evidence_tables"
