"""The verb `stats`: prints statistics of a corpus by domain."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUMMARY = "statistics of a corpus by domain: lengths, top tokens, duplicates"
DESCRIPTION = """\
Count, by domain and split: documents and tokens, a histogram of lengths, duplicates, tokens masked
out of the loss, bytes per token, distinct ids and the most frequent ones.

  python -m data_prep stats data/web
  python -m data_prep stats data/web --json stats.json
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="corpus folder written by build")
    verb.add_argument(
        "--top",
        type=int,
        default=10,
        metavar="N",
        help="show the N most frequent tokens (default: 10)",
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="also write the statistics as JSON")


def run(options: argparse.Namespace) -> int:
    from data_prep.durable import write_durable
    from data_prep.shards import open_corpus
    from data_prep.viewing.stats import corpus_stats, stats_lines

    if options.top < 1:
        raise ValueError(f"--top {options.top}: must be at least 1")
    stats = corpus_stats(open_corpus(options.folder), num_top=options.top)
    if options.json:
        content = json.dumps([part.model_dump() for part in stats], indent=1, ensure_ascii=False)
        write_durable(options.json, content.encode())
    for line in stats_lines(stats):
        print(line)
    return 0
