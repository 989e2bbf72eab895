"""Rows of the proof: a name, and work that returns figures; how one is run and written."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Figures = dict[str, float]
Row = tuple[str, Callable[[], Figures]]
"""Work raises AssertionError where a figure is beyond its bound, `Skipped` where it cannot run."""


class Skipped(Exception):
    """Why a row does not run on this machine."""


def need_package(name: str) -> None:
    """Raises Skipped where a package is not installed."""
    if name not in sys.modules and find_spec(name) is None:
        raise Skipped(f"{name} is not installed")


def run_row(rows_file: Path, step: str, row: Row) -> None:
    """Append what became of it: pass, skipped or FAIL."""
    name, work = row
    began, result, reason = time.monotonic(), "pass", ""
    figures: Figures = {}
    try:
        figures = work()
    except Skipped as skipped:
        result, reason = "skipped", str(skipped)
    except Exception:
        result, reason = "FAIL", traceback.format_exc()
    seconds = time.monotonic() - began
    outcome = {"result": result, "seconds": seconds, "figures": figures, "reason": reason}
    write_row(rows_file, step=step, row=name, **outcome)


def write_row(rows_file: Path, **row: Any) -> None:
    with rows_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
