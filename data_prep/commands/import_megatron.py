"""The verb `import-megatron`: turns .bin and .idx into a corpus folder."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Megatron's .bin and .idx to shards"
DESCRIPTION = """\
Build a corpus folder from file pairs written by Megatron's preprocessing. Documents and ids are
kept as they are, including any BOS and EOS; ids are checked against the vocabulary of --tokenizer,
which must be the tokenizer that produced them. A new held-out split is chosen.

  python -m data_prep import-megatron /data/megatron/notes_text_document \\
      --tokenizer ./Qwen3-0.6B --out data/notes
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "prefixes",
        nargs="+",
        metavar="[NAME=]PREFIX",
        help="paths without .bin and .idx, optionally with a domain",
    )
    verb.add_argument(
        "--tokenizer",
        required=True,
        metavar="NAME_OR_PATH",
        help="a hub name, a Hugging Face folder, a tokenizer.json or a sentencepiece .model",
    )
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="corpus folder to write"
    )
    verb.add_argument(
        "--overwrite", action="store_true", help="replace an existing corpus at --out"
    )
    verb.add_argument(
        "--restart", action="store_true", help="discard an unfinished build and start over"
    )
    verb.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="stop the build at a bad document (default), or count and skip it",
    )
    verb.add_argument(
        "--val-frac",
        type=float,
        default=0.01,
        metavar="F",
        help="fraction of documents held out, by a hash of their ids (default: 0.01)",
    )
    verb.add_argument(
        "--workers", type=int, metavar="N", help="worker processes (default: one per core)"
    )
    verb.add_argument(
        "--shard-mib", type=float, default=512, metavar="M", help="shard size (default: 512)"
    )


def run(options: argparse.Namespace) -> int:
    from data_prep.build import build
    from data_prep.build_options import BuildOptions
    from data_prep.reading.fields import Fields
    from data_prep.viewing.summary import build_summary

    manifest = build(
        BuildOptions(
            inputs=tuple(_index_path(prefix) for prefix in options.prefixes),
            out=options.out,
            tokenizer=options.tokenizer,
            fields=Fields(ids="ids"),
            val_frac=options.val_frac,
            on_error=options.on_error,
            num_workers=options.workers,
            shard_mib=options.shard_mib,
            overwrite=options.overwrite,
            restart=options.restart,
        )
    )
    print(build_summary(manifest, folder=options.out))
    return 0


def _index_path(prefix: str) -> str:
    """The .idx of a pair given by its prefix, as in Megatron, or by either file."""
    for suffix in (".idx", ".bin"):
        prefix = prefix.removesuffix(suffix)
    return f"{prefix}.idx"
