"""Preflight on real ranks, and what it found."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

from launch.__main__ import main
from launch.preflight.catalogue import CHECKS
from tests.distributed import run_ranks


def only(*names: str) -> list[str]:
    return ["--skip", ",".join(name for name in CHECKS if name not in names)]


def preflight_on_rank(arguments: list[str], plant: Callable[[], None] | None) -> dict[str, Any]:
    """What the command prints in JSON, its exit code, and what it says on stderr."""
    if plant is not None:
        plant()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["preflight", *arguments, "--json"])
    printed = json.loads(out.getvalue()) if out.getvalue() else {}
    return {"code": code, "printed": printed, "err": err.getvalue()}


def preflight(
    *arguments: str, world_size: int = 2, plant: Callable[[], None] | None = None
) -> dict[str, Any]:
    """The same from all ranks, where rank 0 alone prints and all end with one code."""
    main_rank, *others = run_ranks(preflight_on_rank, list(arguments), plant, world_size=world_size)
    assert all(other["printed"] == {} for other in others)
    assert {other["code"] for other in others} <= {main_rank["code"]}
    return main_rank


def findings(done: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Of one check; its row is there, whatever became of it."""
    (row,) = [row for row in done["printed"]["checks"] if row["name"] == name]
    return row["findings"]


def failure(done: dict[str, Any], name: str) -> dict[str, Any]:
    """The first failure of a check, when it and nothing else ended the command with 1."""
    assert done["code"] == 1, done
    failed = [row["name"] for row in done["printed"]["checks"] if row["verdict"] == "fail"]
    assert failed == [name], done
    return findings(done, name)[0]
