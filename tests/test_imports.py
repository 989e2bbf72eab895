"""Modules import one another in no circle, so that any can be the first; builds load little."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "data_prep", "training", "launch")


def imported(node: ast.AST) -> Iterator[str]:
    """What an import of the module imports: not what functions import when they are called."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from imported(child)


def graph(root: Path) -> dict[str, set[str]]:
    """By module, the modules of ours that are loaded before it, their packages among them."""
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    names = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found = {}
    for name, path in names.items():
        found[name] = {
            before
            for used in imported(ast.parse(path.read_text(encoding="utf-8")))
            for before in (used, *(used.rsplit(".", n)[0] for n in range(1, used.count(".") + 1)))
            if before in names and before != name and not name.startswith(before + ".")
        }
    return found


def test_no_module_waits_for_one_that_waits_for_it() -> None:
    found = graph(ROOT)
    assert "training.config.recipe" in found["training.run.run"]
    try:
        list(TopologicalSorter(found).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "common"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("from common.b import f\n\ng = 1\n")
    (package / "b.py").write_text("def f():\n    from common.a import g\n")
    list(TopologicalSorter(graph(tmp_path)).static_order())
    (package / "b.py").write_text("if 1:\n    from common.a import g\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(tmp_path)).static_order())


def test_a_build_loads_only_what_every_build_needs() -> None:
    script = (
        "import sys; before = set(sys.modules); import data_prep.build, data_prep.viewing.summary;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYDANTIC_DISABLE_PLUGINS": "__all__"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert {"numpy", "tokenizers", "pydantic"} <= loaded
    rarely = {"sentencepiece", "pathspec", "zstandard", "pyarrow", "datasets", "gigatoken", "torch"}
    assert not loaded & (rarely | {"multiprocessing", "data_prep.shards", "transformers"})
