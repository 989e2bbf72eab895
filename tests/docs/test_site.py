"""The site of the pages: built without a warning, searchable, with all that others may call."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import REPO_ROOT

TOOLS = REPO_ROOT / ".venv" / "docs"
LOADED = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)')
METHOD = REPO_ROOT / "training" / "entrodrop"


@pytest.mark.skipif(not TOOLS.is_dir(), reason="needs mkdocs: launch/setup.sh --dev")
def test_the_site_has_every_page_a_search_and_the_method(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPO_ROOT,
        env=os.environ | {"PYTHONPATH": str(TOOLS), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    index = json.loads((tmp_path / "search" / "search_index.json").read_text())
    places = {entry["location"] for entry in index["docs"]}
    pages = {f"{page.stem}/" for page in (REPO_ROOT / "docs").glob("*.md")} - {"README/"}
    assert {*pages, "CONTRIBUTING/", "CHANGELOG/", "SECURITY/", ""} <= places
    assert {f"api/#training.entrodrop.{name}" for name in functions_of_the_method()} <= places
    assert {"api/#data_prep.shards.Corpus", "api/#data_prep.shards.open_corpus"} <= places
    for page in tmp_path.rglob("*.html"):
        assert not LOADED.findall(page.read_text()), f"{page} loads from elsewhere"


def functions_of_the_method() -> list[str]:
    """With their modules; those for Triton are called by the others."""
    names = []
    for path in METHOD.glob("*.py"):
        if not path.stem.endswith("_triton"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            functions = (node.name for node in body if isinstance(node, ast.FunctionDef))
            names += [f"{path.stem}.{name}" for name in functions if not name.startswith("_")]
    return names
