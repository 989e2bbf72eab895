"""The verb `dedup`: lists duplicate documents for pack to skip."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "list duplicate documents, exact or near"
DESCRIPTION = """\
Find documents that occur more than once in a corpus and list all but the first in DIR/removals.
The shards are not changed; pack skips the listed documents. Held-out documents come first, so of
a pair across the splits the copy in train is removed.

Without --near, duplicates are documents with identical tokens. With it, they are documents with
similar sets of token n-grams (Jaccard similarity, estimated by MinHash); that takes longer and also
finds the exact ones.

report.jsonl lists every removal with its origin and the document that is kept.

  python -m data_prep dedup data/web
  python -m data_prep dedup data/web --near --threshold 0.8
  python -m data_prep pack  data/web --seq-len 2048 --overwrite
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="corpus folder written by build")
    verb.add_argument("--near", action="store_true", help="find near duplicates, by MinHash")
    near = verb.add_argument_group("near duplicates")
    near.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        metavar="T",
        help="minimum similarity (default: 0.8)",
    )
    near.add_argument(
        "--ngram", type=int, default=5, metavar="N", help="tokens per n-gram (default: 5)"
    )
    near.add_argument(
        "--num-perm",
        type=int,
        default=128,
        metavar="K",
        help="signature length; the estimate's error is about 1/sqrt(K) (default: 128)",
    )
    near.add_argument(
        "--workers", type=int, metavar="W", help="worker processes (default: one per core)"
    )
    add_writing_arguments(verb, default_name="exact, or near")


def add_writing_arguments(verb: argparse.ArgumentParser, *, default_name: str) -> None:
    """Add the flags shared by all verbs that write a removal list."""
    verb.add_argument("--name", help=f"name of the list (default: {default_name})")
    verb.add_argument(
        "--overwrite", action="store_true", help="replace an existing list of that name"
    )
    verb.add_argument(
        "--dry-run", action="store_true", help="report what would be removed, write nothing"
    )


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
