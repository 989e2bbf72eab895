"""Code that comes with a model runs only when the recipe says so, and then it is said."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from training.config.sections import Model
from training.model.causal_lm import warn_of_remote_code

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for name in ("training", "data_prep", "launch") for path in (ROOT / name).rglob("*.py")
]


def loading_calls(path: Path) -> list[ast.Call]:
    """Of transformers' auto classes, and of our function around one, which hands on the choice."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.Call) and _loads(node.func)]


def _loads(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        is_auto = ast.unparse(function.value).startswith("Auto")
        return is_auto and function.attr in ("from_pretrained", "from_config")
    return ast.unparse(function) == "load_text_model"


def test_every_load_by_transformers_says_whether_code_may_run():
    calls = [(path, call) for path in SOURCES for call in loading_calls(path)]
    assert len(calls) >= 8
    for path, call in calls:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        assert keywords.get("trust_remote_code") in (
            "False",
            "model.trust_remote_code",
            "recipe.model.trust_remote_code",
            "trust_remote_code",
        ), where


def test_it_is_off_by_default_and_loud_when_on(capsys: pytest.CaptureFixture[str]):
    warn_of_remote_code(Model(pretrained="some/model"))
    assert capsys.readouterr().err == ""
    warn_of_remote_code(Model(pretrained="some/model", trust_remote_code=True))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING: model.trust_remote_code is set")
    assert "some/model" in line
