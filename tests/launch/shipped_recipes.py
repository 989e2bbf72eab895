"""Where the recipes lie that are planned."""

from __future__ import annotations

from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]
RECIPES = REPO_ROOT / "training" / "recipes"
QWEN_8B = str(RECIPES / "qwen3_8b.yaml")
LONG = str(RECIPES / "qwen3_8b_128k.yaml")
