from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from tests.docs.markdown import REPO_ROOT, code_blocks, load_script
from training.config.load import load_recipe, parse_recipe
from training.config.regularisers import RegulariserName

RECIPES = sorted((REPO_ROOT / "training" / "recipes").glob("*.yaml"))


def test_reference_of_recipe_keys_is_up_to_date() -> None:
    written = (REPO_ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert written == load_script("generate_recipe_reference").reference(), (
        "run: python -m docs.generate_recipe_reference"
    )


def test_what_the_page_of_regularisers_shows_is_valid() -> None:
    recipe = yaml.safe_load((REPO_ROOT / "training" / "recipes" / "quickstart.yaml").read_text())
    recipe.pop("regulariser", None)
    recipe |= {"model": {"pretrained": "base"}}
    for block in code_blocks(REPO_ROOT / "docs" / "regularisers.md", "yaml"):
        parse_recipe(recipe | yaml.safe_load(block))


def test_the_page_of_regularisers_has_all_of_them() -> None:
    page = (REPO_ROOT / "docs" / "regularisers.md").read_text(encoding="utf-8")
    for name in get_args(RegulariserName):
        assert name == "none" or f"| `{name}` |" in page, name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid_and_short(path: Path) -> None:
    recipe = load_recipe(path)
    assert (REPO_ROOT / recipe.deepspeed).exists()
    assert recipe.run_dir.startswith("runs/")
    # Without comments and blank lines: a recipe states only what differs from the defaults.
    stated = [line for line in path.read_text().splitlines() if line.partition("#")[0].strip()]
    assert len(stated) <= 40
