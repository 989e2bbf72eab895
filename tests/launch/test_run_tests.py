"""`make test ARGS=...` hands its arguments on to pytest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]


def run_tests(temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With a python that shows what it is asked to run."""
    python = temporary / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    return subprocess.run(
        ["launch/run_tests.sh", *arguments],
        cwd=REPO_ROOT,
        env=os.environ | {"PYTHON": str(python), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "argument", ["tests/no_such_file.py", "tests/no_such_folder/", "no_such.py::test_a[x/y]"]
)
def test_a_path_that_does_not_exist_is_refused_before_anything_is_made(argument, tmp_path):
    done = run_tests(tmp_path, "-x", argument)
    path, _, _ = argument.partition("::")
    said = f"error: {path}: no such file or folder; paths begin at the root of the repository\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
    assert [found.name for found in tmp_path.iterdir()] == ["python"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("tests/test_locks.py", "-q"),
        ("tests/docs", "tests/test_locks.py::test_x"),
        ("-k", "a/b or c.py"),
        ("--deselect", "tests/gone.py::test_x"),
        ("--junitxml=out/of.xml", "-x", "-m", "not slow"),
    ],
)
def test_other_arguments_reach_pytest(arguments, tmp_path):
    done = run_tests(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(" ".join(arguments))
