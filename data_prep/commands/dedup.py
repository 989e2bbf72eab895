"""The verb `dedup`: documents that are there twice, listed to be left out."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "list duplicate documents, exact or near"
DESCRIPTION = """\
Find documents that a corpus holds more than once and list all but the first in DIR/removals.
The shards stay as they are; pack leaves out what is listed. Held-out documents come first: a copy
of one in train is what goes.

Without --near two documents are duplicates when all their tokens are the same. With it, when the
sets of their n-grams of tokens are alike (Jaccard similarity, estimated by MinHash); that takes
longer and finds the exact ones too.

report.jsonl names every removal with its origin, and the document that stays.

  python -m data_prep dedup data/web
  python -m data_prep dedup data/web --near --threshold 0.8
  python -m data_prep pack  data/web --seq-len 2048 --overwrite
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder that build wrote")
    verb.add_argument("--near", action="store_true", help="near duplicates, by MinHash")
    near = verb.add_argument_group("near duplicates")
    near.add_argument(
        "--threshold", type=float, default=0.8, metavar="T", help="least similarity (default: 0.8)"
    )
    near.add_argument(
        "--ngram", type=int, default=5, metavar="N", help="tokens of an n-gram (default: 5)"
    )
    near.add_argument(
        "--num-perm",
        type=int,
        default=128,
        metavar="K",
        help="length of a signature; the estimate errs by about 1/sqrt(K) (default: 128)",
    )
    near.add_argument(
        "--workers", type=int, metavar="W", help="processes that sketch (default: one a core)"
    )
    add_writing_arguments(verb, default_name="exact, or near")


def add_writing_arguments(verb: argparse.ArgumentParser, *, default_name: str) -> None:
    """Flags of every verb that writes a list of removals."""
    verb.add_argument("--name", help=f"what to call the list (default: {default_name})")
    verb.add_argument("--overwrite", action="store_true", help="replace an older list of that name")
    verb.add_argument("--dry-run", action="store_true", help="say what would go, write nothing")


def run(options: argparse.Namespace) -> int:
    from data_prep.cleaning.passes import dedup_exact, dedup_near
    from data_prep.viewing.removals import removals_summary

    writing = {
        "name": options.name or ("near" if options.near else "exact"),
        "overwrite": options.overwrite,
        "dry_run": options.dry_run,
    }
    if options.near:
        removals = dedup_near(
            options.folder,
            threshold=options.threshold,
            ngram=options.ngram,
            num_perm=options.num_perm,
            num_workers=options.workers,
            **writing,
        )
    else:
        removals = dedup_exact(options.folder, **writing)
    print(removals_summary(removals, corpus_folder=options.folder, is_written=not options.dry_run))
    return 0
