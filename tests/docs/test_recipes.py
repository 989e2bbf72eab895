from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.markdown import REPO_ROOT, load_script
from training.config.load import load_recipe

RECIPES = sorted((REPO_ROOT / "training" / "recipes").glob("*.yaml"))


def test_reference_of_recipe_keys_is_up_to_date() -> None:
    written = (REPO_ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert written == load_script("generate_recipe_reference").reference(), (
        "run: python -m docs.generate_recipe_reference"
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid_and_short(path: Path) -> None:
    recipe = load_recipe(path)
    assert (REPO_ROOT / recipe.deepspeed).exists()
    assert recipe.run_dir.startswith("runs/")
    # Without comments and blank lines: a recipe states only what differs from the defaults.
    stated = [line for line in path.read_text().splitlines() if line.partition("#")[0].strip()]
    assert len(stated) <= 40
