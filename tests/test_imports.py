"""What can be the first of ours that a process imports, can: no circle needs an order.

Tests mostly start processes in which others are loaded already (`tests/warm_python.py`). Here ours
are forgotten first.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "data_prep", "training", "launch")
# Keeps what is not ours, and imports each module in a fork of its own.
EACH_IN_A_FORK = """
import gc, json, os, sys, traceback
packages = ("common", "data_prep", "training", "launch", "tests", "benchmarks")
for name in list(sys.modules):
    if name.split(".")[0] in packages:
        del sys.modules[name]
gc.freeze()
failed = {}
for name in sys.argv[1:]:
    reads, writes = os.pipe()
    if os.fork() == 0:
        try:
            __import__(name)
            assert sys.modules[name].__spec__.origin
        except BaseException:
            os.write(writes, traceback.format_exc()[-2000:].encode())
        os._exit(0)
    os.close(writes)
    with open(reads) as said:
        if text := said.read():
            failed[name] = text
    os.wait()
print(json.dumps(failed))
"""


def entries() -> list[str]:
    """The commands, and what they import only when they are called."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = set()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.If) and "__name__" in ast.unparse(node) for node in tree.body):
            found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                imports = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
                found |= {str(node.module) for node in imports}
    return sorted(name for name in found if name.split(".")[0] in PACKAGES)


@pytest.mark.slow
def test_every_entry_can_be_the_first() -> None:
    assert {"training.__main__", "training.run.run", "data_prep.build"} <= set(entries())
    done = subprocess.run(
        [warm_python(), "-c", EACH_IN_A_FORK, *entries()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


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
