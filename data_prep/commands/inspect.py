"""The verb `inspect`: shows samples and documents."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from common.commands import command

SUMMARY = "show samples or documents, in the terminal or as HTML"
DESCRIPTION = """\
Show what training will see: samples as text with a line at each document start, or whole documents
without --seq-len. With --scores, tokens are coloured by entropy; tokens masked out of the loss are
dim, and tokens that a recipe would drop are struck through.

--html writes one self-contained page for any screen size.

  python -m data_prep inspect data/notes --seq-len 2048 --sample 0 17
  python -m data_prep inspect data/notes --split val --html notes.html
  python -m training preview RECIPE.yaml --scores base --epoch 3 --samples 0-3 --out drops.json
  python -m data_prep inspect data/notes --seq-len 2048 --sample 0 1 2 3 --drops drops.json \\
      --html drops.html
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="corpus folder written by build")
    verb.add_argument(
        "--seq-len", type=int, metavar="S", help="show samples of the pack for S tokens"
    )
    verb.add_argument("--split", choices=["train", "val"], default="train")
    verb.add_argument(
        "--sample",
        type=int,
        nargs="+",
        default=[0],
        metavar="I",
        help="numbers of samples, or of documents without --seq-len (default: 0)",
    )
    verb.add_argument("--scores", metavar="NAME", help="colour by these scores of the corpus")
    verb.add_argument(
        "--drops", type=Path, metavar="FILE", help=f"output of `{command('training preview')}`"
    )
    verb.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page instead")
    verb.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        default="auto",
        help="colour the output (default: on a terminal, unless NO_COLOR is set)",
    )


def run(options: argparse.Namespace) -> int:
    from data_prep.viewing.selection import Selection

    selection = Selection(
        folder=options.folder,
        seq_len=options.seq_len,
        split=options.split,
        numbers=options.sample,
        scores=options.scores,
        drops=options.drops,
    )
    if options.html:
        from data_prep.viewing.html_page import write_page

        print(write_page(selection, out=options.html))
        return 0
    from data_prep.viewing.show import show

    wants_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    in_colour = wants_colour if options.color == "auto" else options.color == "always"
    for line in show(selection, in_colour=in_colour):
        print(line)
    sys.stdout.flush()
    return 0
