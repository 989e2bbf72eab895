"""The verb `export-megatron`: writes a corpus as .bin and .idx."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "a corpus as Megatron's .bin and .idx"
DESCRIPTION = """\
Write a corpus as the file pairs that Megatron trains on: PREFIX-train.bin and .idx,
PREFIX-val.bin and .idx; with --split train or val only PREFIX.bin and .idx. Each document is one
sequence, in corpus order. Files appear under their names only when all are complete.

  python -m data_prep export-megatron data/notes --out /data/megatron/notes
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="corpus folder written by build")
    verb.add_argument(
        "--out", type=Path, required=True, metavar="PREFIX", help="path without .bin and .idx"
    )
    verb.add_argument("--split", choices=["train", "val", "all"], default="all")
    verb.add_argument("--domain", nargs="+", default=[], metavar="NAME", help="only these domains")
    verb.add_argument("--overwrite", action="store_true", help="replace existing pairs at --out")


def run(options: argparse.Namespace) -> int:
    from data_prep.megatron import export_megatron

    exports = export_megatron(
        options.folder,
        prefix=options.out,
        split=options.split,
        domains=options.domain,
        overwrite=options.overwrite,
    )
    for export in exports:
        print(
            f"{export.prefix}.bin and .idx: {export.split}, {export.num_documents:,} documents, "
            f"{export.num_tokens:,} tokens, {export.num_bytes / 2**20:,.1f} MiB"
        )
    if options.split == "all" and len(exports) == 1:
        print(f"only one pair written: only {exports[0].split} has documents")
    if any(export.leaves_out_masks for export in exports):
        print(
            "loss masks are not exported: Megatron's format cannot store them, so training on "
            "these files computes the loss on every token, prompts included"
        )
    return 0
