"""What tests of the planner share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.shipped_recipes import REPO_ROOT


@pytest.fixture
def in_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Recipes name their DeepSpeed files from there; models come from no cache."""
    monkeypatch.chdir(REPO_ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
