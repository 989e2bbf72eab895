"""The verb `verify`: checks a corpus against its manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "check a corpus with its packs, removals and scores"
DESCRIPTION = """\
Check a corpus with its packs, removal lists and scores: sizes, document offsets, ids within the
vocabulary, no document in both splits, every token in exactly one sample; with --deep also every
checksum. It prints a table, and exits with 1 if a check fails, naming the shard, the expected and
the found value.

  python -m data_prep verify data/notes --deep
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="corpus folder written by build")
    verb.add_argument("--deep", action="store_true", help="read all bytes and compare checksums")


def run(options: argparse.Namespace) -> int:
    from data_prep.verify import verify
    from data_prep.viewing.summary import verify_summary

    checks = verify(options.folder, deep=options.deep)
    print(verify_summary(checks, folder=options.folder, deep=options.deep))
    return 0 if all(check.problem is None for check in checks) else 1
