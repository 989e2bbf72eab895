"""The results as lines to read, and as plain data for JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launch.preflight.catalogue import CHECKS
from launch.preflight.finding import Verdict, worst
from launch.preflight.formatting import count
from launch.preflight.run import Result
from launch.preflight.setting import Setting

_WIDTH = 100
_NAME_WIDTH = max(map(len, CHECKS)) + 2
_INDENT = " " * (_NAME_WIDTH + 6)
_SHOWN: dict[Verdict, str] = {"pass": "pass", "skip": "-", "warn": "WARN", "fail": "FAIL"}


def heading(setting: Setting, *, name: str) -> str:
    """The hosts and processes that take part."""
    hosts = [f"{host} ({len(ranks)})" for host, ranks in setting.ranks_of_host.items()]
    shown = ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
    return f"preflight of {name}: {count(setting.world_size, 'process')} on {shown}"


def as_lines(result: Result) -> str:
    """One line for a pass, else what was found and what to do, finding by finding."""
    lines = []
    for number, finding in enumerate(result.findings):
        begin = result.name if number == 0 else ""
        head = f"{begin:<{_NAME_WIDTH}}{_SHOWN[finding.verdict]:<6}"
        lines += textwrap.wrap(
            finding.found or "-",
            width=_WIDTH,
            initial_indent=head,
            subsequent_indent=_INDENT,
            break_on_hyphens=False,
        )
        if finding.todo:
            lines += textwrap.wrap(
                finding.todo,
                width=_WIDTH,
                initial_indent=f"{_INDENT}-> ",
                subsequent_indent=f"{_INDENT}   ",
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def verdict_of(results: Sequence[Result]) -> Verdict:
    """Of the whole preflight."""
    return worst(finding for result in results for finding in result.findings)


def summary(results: Sequence[Result], *, seconds: float) -> str:
    """The last line."""
    counts = Counter(result.verdict for result in results)
    shown = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _SHOWN if counts[verdict])
    failed = [result.name for result in results if result.verdict == "fail"]
    end = f"; failed: {', '.join(failed)}" if failed else ""
    return f"{len(results)} checks in {seconds:.0f} s: {shown}{end}"


def as_data(
    setting: Setting, results: Sequence[Result], *, name: str, seconds: float
) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "recipe": name,
        "verdict": verdict_of(results),
        "seconds": round(seconds, 1),
        "hosts": setting.ranks_of_host,
        "checks": [
            {
                "name": result.name,
                "verdict": result.verdict,
                "seconds": round(result.seconds, 2),
                "findings": [
                    asdict(finding)
                    | {"hosts": sorted({setting.hosts[rank] for rank in finding.ranks})}
                    for finding in result.findings
                ],
            }
            for result in results
        ],
    }
