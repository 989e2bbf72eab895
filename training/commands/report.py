"""The verb `report`: runs drawn and compared."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "draw and compare one or more runs"
DESCRIPTION = """\
Write a self-contained HTML page and PNGs from the logs of runs. Runs that differ only by seed are
drawn as one, a mean with a band, and groups are compared, with 95% intervals, against the one with
regulariser: none, or the first.

  python -m training report runs/plain runs/entrodrop --out runs/compared
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folder, or a folder of runs"
    )
    verb.add_argument("--out", type=Path, help="default: report/ in the first run")


def run(options: argparse.Namespace) -> int:
    from training.reports.report import write_report

    print(write_report(options.runs, options.out or options.runs[0] / "report"))
    return 0
