"""The verb `pack`: documents to samples of one length."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep.packing.manifest import PackWeight

SUMMARY = "documents to samples of one length"
DESCRIPTION = """\
Make samples of S tokens out of a corpus: an index in DIR/pack-S beside the shards, not a copy.

best_fit puts each document, longest first, into the fullest sample that has room; only documents
longer than S are cut. concat lays documents back to back and cuts them wherever a sample ends.
Neither loses a token, and both keep the boundaries of documents. A sample holds documents of one
domain. Documents that `dedup` or `decontaminate` listed are left out.

Domains are seen once an epoch unless weights say otherwise: --epochs D=N goes N times through
domain D, --proportion D=P makes it the share P of an epoch's tokens. What that is in tokens is
printed; a recipe can still choose other weights (data.mixture).

  python -m data_prep pack data/notes --seq-len 2048
  python -m data_prep pack data/mixed --seq-len 2048 --epochs notes=4 --proportion web=0.3
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder that build wrote")
    verb.add_argument("--seq-len", type=int, required=True, metavar="S", help="tokens a sample")
    verb.add_argument(
        "--policy", choices=["best_fit", "concat"], default="best_fit", help="default: best_fit"
    )
    for name, value, meaning in (
        ("epochs", "N", "go N times through domain D in an epoch; 0 leaves it out"),
        ("proportion", "P", "make domain D the share P of an epoch's tokens"),
    ):
        verb.add_argument(
            f"--{name}", action="append", default=[], metavar=f"D={value}", help=meaning
        )
    verb.add_argument("--overwrite", action="store_true", help="replace another pack of S")


def run(options: argparse.Namespace) -> int:
    from data_prep.packing.pack import pack
    from data_prep.viewing.summary import pack_summary

    index = pack(
        options.folder,
        seq_len=options.seq_len,
        policy=options.policy,
        weights=_weights(options),
        overwrite=options.overwrite,
    )
    print(pack_summary(index, corpus_folder=options.folder))
    return 0


def _weights(options: argparse.Namespace) -> dict[str, PackWeight]:
    from pydantic import ValidationError

    from data_prep.packing.manifest import PackWeight

    weights: dict[str, PackWeight] = {}
    for kind in ("epochs", "proportion"):
        for text in getattr(options, kind):
            name, _, number = text.partition("=")
            if name in weights:
                raise ValueError(f"--{kind} {text}: domain {name} has a weight already")
            try:
                weights[name] = PackWeight(**{kind: float(number)})
            except (ValueError, ValidationError):
                allowed = "0 or more" if kind == "epochs" else "from 0 to 1"
                raise ValueError(
                    f"--{kind} {text}: expected DOMAIN=NUMBER with a number {allowed}"
                ) from None
    return weights
