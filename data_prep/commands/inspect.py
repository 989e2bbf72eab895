"""The verb `inspect`: samples and documents for a person to look at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "print samples or documents"
DESCRIPTION = """\
Show what training will see: samples as text with a line wherever a document begins, or whole
documents when no --seq-len is given.

  python -m data_prep inspect data/notes --seq-len 2048 --sample 0 17
  python -m data_prep inspect data/notes --split val
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder that build wrote")
    verb.add_argument("--seq-len", type=int, metavar="S", help="show samples of the pack of S")
    verb.add_argument("--split", choices=["train", "val"], default="train")
    verb.add_argument(
        "--sample",
        type=int,
        nargs="+",
        default=[0],
        metavar="I",
        help="numbers of samples, or of documents without --seq-len (default: 0)",
    )


def run(options: argparse.Namespace) -> int:
    from data_prep.viewing.show import show

    lines = show(
        options.folder,
        seq_len=options.seq_len,
        split=options.split,
        numbers=options.sample,
        in_colour=sys.stdout.isatty(),
    )
    for line in lines:
        print(line)
    sys.stdout.flush()
    return 0
