"""The verb `pack`: packs documents into samples of one length."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep.packing.manifest import PackWeight

SUMMARY = "pack documents into samples of one length"
DESCRIPTION = """\
Pack a corpus into samples of S tokens: an index in DIR/pack-S next to the shards, not a copy.

best_fit puts each document, longest first, into the fullest sample that has room; only documents
longer than S are split over several samples. concat puts documents back to back and splits them
wherever a sample ends. Neither loses a token, and both keep document boundaries. A sample holds
documents of one domain. Documents listed by `dedup` or `decontaminate` are skipped.

Each domain is seen once per epoch unless weighted: --epochs D=N makes N passes over domain D,
--proportion D=P makes it the fraction P of an epoch's tokens. The resulting token counts are
printed; a recipe can still choose other weights (data.mixture).

  python -m data_prep pack data/notes --seq-len 2048
  python -m data_prep pack data/mixed --seq-len 2048 --epochs notes=4 --proportion web=0.3
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="corpus folder written by build")
    verb.add_argument("--seq-len", type=int, required=True, metavar="S", help="tokens per sample")
    verb.add_argument(
        "--policy", choices=["best_fit", "concat"], default="best_fit", help="default: best_fit"
    )
    for name, value, meaning in (
        ("epochs", "N", "make N passes over domain D per epoch; 0 leaves it out"),
        ("proportion", "P", "make domain D the fraction P of an epoch's tokens"),
    ):
        verb.add_argument(
            f"--{name}", action="append", default=[], metavar=f"D={value}", help=meaning
        )
    verb.add_argument("--overwrite", action="store_true", help="replace an existing pack for S")


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
                raise ValueError(f"--{kind} {text}: domain {name} already has a weight")
            try:
                weights[name] = PackWeight(**{kind: float(number)})
            except (ValueError, ValidationError):
                allowed = "0 or more" if kind == "epochs" else "from 0 to 1"
                raise ValueError(
                    f"--{kind} {text}: expected DOMAIN=NUMBER with a number {allowed}"
                ) from None
    return weights
