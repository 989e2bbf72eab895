"""The tables of the evidence are those of the rows that the repository carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]


def test_tables_are_those_of_the_rows() -> None:
    path = REPO_ROOT / "docs" / "generate_evidence_tables.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (REPO_ROOT / "docs" / "evidence_tables.md").read_text(encoding="utf-8")
    assert written == module.page(), "run: python -m docs.generate_evidence_tables"
