"""The verb `pack`: documents to samples of one length."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "documents to samples of one length"
DESCRIPTION = """\
Make samples of S tokens out of a corpus: an index in DIR/pack-S beside the shards, not a copy.

best_fit puts each document, longest first, into the fullest sample that has room; only documents
longer than S are cut. concat lays documents back to back and cuts them wherever a sample ends.
Neither loses a token, and both keep the boundaries of documents.

  python -m data_prep pack data/notes --seq-len 2048
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder that build wrote")
    verb.add_argument("--seq-len", type=int, required=True, metavar="S", help="tokens a sample")
    verb.add_argument(
        "--policy", choices=["best_fit", "concat"], default="best_fit", help="default: best_fit"
    )
    verb.add_argument("--overwrite", action="store_true", help="replace another pack of S")


def run(options: argparse.Namespace) -> int:
    from data_prep.packing.pack import pack
    from data_prep.viewing.summary import pack_summary

    index = pack(
        options.folder,
        seq_len=options.seq_len,
        policy=options.policy,
        overwrite=options.overwrite,
    )
    print(pack_summary(index, corpus_folder=options.folder))
    return 0
