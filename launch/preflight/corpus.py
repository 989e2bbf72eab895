"""Checks: everything that a start would refuse, and the checksums of what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from launch.preflight.finding import Finding
from launch.preflight.formatting import count, size
from launch.preflight.meeting import sizes_only
from launch.preflight.setting import Context, Setting
from training.run.run_data import RunData
from training.run.start import check_start

_MAX_BYTES = 8 * 2**30
"""What a rank reads without --deep: within a minute at 150 MB/s."""


def measure_start(context: Context) -> dict[str, Any]:
    """The plan of the run.

    Raises:
        ValueError: as `python -m training train` would.
    """
    return asdict(check_start(sizes_only(context.recipe), context.layout).plan)


def judge_start(_: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Refusals have already been raised."""
    plan = measures[min(measures)]
    return [
        Finding(
            "pass",
            f"{plan['total_steps']:,} steps of {plan['samples_per_step']:,} samples, "
            f"{plan['micro_steps']} micro-steps each, {plan['planned_tokens']:,} tokens",
        )
    ]


def measure_contents(context: Context) -> dict[str, Any]:
    """Read this rank's share of a run's files, unless that takes long and was not requested.

    Raises:
        ValueError: for the first file that does not match its manifest.
    """
    recipe, layout = context.recipe, context.layout
    data = RunData.open(recipe)
    files = [file for _, file in data.files(recipe)]
    num_bytes = sum(file.num_bytes for file in files)
    reads = context.setting.deep or (
        recipe.data.verify == "hashes" and num_bytes / layout.world_size < _MAX_BYTES
    )
    if reads:
        data.check(recipe, layout)
    return {"read": reads, "bytes": num_bytes, "files": len(files)}


def judge_contents(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Files that were not read are reported."""
    found = measures[min(measures)]
    files = f"{count(found['files'], 'file')}, {size(found['bytes'])}"
    if found["read"]:
        return [Finding("pass", f"{files}: every byte matches the manifests")]
    when = "a start reads them" if setting.recipe.data.verify == "hashes" else "data.verify: sizes"
    return [Finding("skip", f"{files}: sizes only ({when}); --deep reads them here")]
