"""The verb `decontaminate`: lists documents with benchmark text for pack to skip."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.commands.dedup import add_writing_arguments

SUMMARY = "list documents that contain benchmark text"
DESCRIPTION = """\
Find documents that share word n-grams with benchmark files and list them in DIR/removals. The
shards are not changed; pack skips the listed documents.

Documents are read as the text of their ids; case, width and punctuation are ignored. A benchmark
text shorter than an n-gram must occur as a whole; one of fewer than 8 words is too common to be
evidence and is only counted.

report.jsonl lists every removal with its origin, the file and row it matched, and the words.

  python -m data_prep decontaminate data/web --against gsm8k/test.jsonl --text-key question
  python -m data_prep decontaminate data/web --against mmlu/ --text-key question --split both
  python -m data_prep pack data/web --seq-len 2048 --overwrite
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="corpus folder written by build")
    verb.add_argument(
        "--against",
        nargs="+",
        required=True,
        metavar="PATH",
        help="benchmark files or folders, in any text format that build reads",
    )
    verb.add_argument(
        "--text-key",
        action="append",
        metavar="KEY",
        help="record field that holds the text (repeatable; default: text)",
    )
    verb.add_argument(
        "--ngram", type=int, default=13, metavar="N", help="words per n-gram (default: 13)"
    )
    verb.add_argument(
        "--min-matches",
        type=int,
        default=1,
        metavar="M",
        help="shared n-grams needed to remove a document (default: 1)",
    )
    verb.add_argument(
        "--split",
        choices=["train", "both"],
        default="train",
        help="splits to search (default: train)",
    )
    verb.add_argument(
        "--workers", type=int, metavar="W", help="worker processes (default: one per core)"
    )
    add_writing_arguments(verb, default_name="decontaminate")


def run(options: argparse.Namespace) -> int:
    from data_prep.cleaning.passes import decontaminate
    from data_prep.viewing.removals import removals_summary

    removals = decontaminate(
        options.folder,
        against=options.against,
        keys=options.text_key or ["text"],
        ngram=options.ngram,
        min_matches=options.min_matches,
        includes_val=options.split == "both",
        num_workers=options.workers,
        name=options.name or "decontaminate",
        overwrite=options.overwrite,
        dry_run=options.dry_run,
    )
    print(removals_summary(removals, corpus_folder=options.folder, is_written=not options.dry_run))
    return 0
